"""The index, kept by events, is the ranking that sorting all sessions anew would give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefill_worker.policy import POLICIES, Policy
from prefill_worker.rank_index import RankIndex
from prefill_worker.types import RequestView

IDS = ["a", "b", "c", "d", "e", "f"]


@st.composite
def views(draw: st.DrawFn) -> RequestView:
    request_id = draw(st.sampled_from(IDS))
    known = draw(st.integers(1, 20))
    return RequestView(
        request_id,
        sealed=draw(st.booleans()),
        # One session's never changes, and no two have the same.
        arrival=IDS.index(request_id),
        last_event=draw(st.integers(1, 9)),
        num_known_tokens=known,
        num_computed_tokens=draw(st.integers(0, known - 1)),
        num_blocks=draw(st.integers(0, 3)),
        num_reached_tokens=draw(st.integers(0, known)),
        guard_number=draw(st.sampled_from([0, 0, 1, 2])),
        ttft_slo_ms=draw(st.sampled_from([0, 100])),
        is_late=draw(st.booleans()),
    )


changes = st.lists(
    st.one_of(views(), st.sampled_from(IDS), st.sampled_from(sorted(POLICIES)).map(POLICIES.get)),
    max_size=40,
)


@given(changes)
def test_it_is_the_ranking_of_sorting_anew(changes: list[RequestView | str | Policy]) -> None:
    index = RankIndex(POLICIES["fcfs"])
    known: dict[str, RequestView] = {}
    for change in changes:
        if isinstance(change, RequestView):
            index.put(change)
            known[change.request_id] = change
        elif isinstance(change, Policy):
            index.set_policy(change)
        elif known.pop(change, None):
            index.drop(change)
        policy = index.policy
        serve = sorted(
            known.values(), key=lambda v: (policy.serving_key(v, v.has_claim), v.request_id)
        )
        keep = sorted(known.values(), key=lambda v: (policy.eviction_key(v), v.request_id))
        served = [view for view in serve if view.num_wanted_tokens]
        assert list(index.to_serve()) == served
        index.guarded_first = True
        served.sort(key=lambda view: view.guard_number or 99)
        assert [v.guard_number or 99 for v in index.to_serve()] == [
            v.guard_number or 99 for v in served
        ]
        assert [v for v in index.to_serve() if not v.guard_number] == [
            v for v in served if not v.guard_number
        ]
        index.guarded_first = False
        assert list(index.to_evict()) == [view for view in keep[::-1] if view.num_blocks]
        assert index.num_with_claim == sum(view.has_claim for view in known.values())
        assert index.num_with_work == len(list(index.to_serve()))
        assert index.num_waiting_tokens == sum(view.num_wanted_tokens for view in known.values())
        assert len(index) == len(known)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
@given(first=views(), second=views())
def test_no_two_sessions_have_one_rank(
    policy: Policy, first: RequestView, second: RequestView
) -> None:
    if first.request_id != second.request_id:
        assert policy.serving_key(first, True) != policy.serving_key(second, True)
