"""The order in which each policy serves and evicts."""

from __future__ import annotations

import pytest

from prefill_worker.policy import POLICIES
from tests.builders import a_ranking, a_request

pytestmark = pytest.mark.unit

# arrival, last event, computed of known tokens
SEALED_LATE = a_request(
    "sealed-late", sealed=True, arrival=5, last_event=5, known=90, computed=10, num_blocks=1
)
SEALED_NEW = a_request("sealed-new", sealed=True, arrival=4, last_event=9, known=90)
OPEN_OLD = a_request("open-old", arrival=1, last_event=8, known=90, computed=40, num_blocks=2)
OPEN_NEW = a_request("open-new", arrival=3, last_event=7, known=90, computed=20, num_blocks=1)
IDLE = a_request("idle", arrival=2, last_event=2, known=90, computed=89, num_blocks=3)
ALL = (SEALED_LATE, SEALED_NEW, OPEN_OLD, OPEN_NEW, IDLE)


@pytest.mark.parametrize(
    ("policy", "served", "evicted"),
    [
        (
            "fcfs",
            ["sealed-new", "sealed-late", "open-old", "open-new"],
            ["idle", "open-new", "open-old", "sealed-late"],
        ),
        (
            "lcas",
            ["sealed-late", "sealed-new", "open-new", "open-old"],
            ["idle", "open-old", "open-new", "sealed-late"],
        ),
        (
            "srpf",
            ["sealed-late", "sealed-new", "open-old", "open-new"],
            ["idle", "open-new", "open-old", "sealed-late"],
        ),
        (
            "mcps",
            ["open-old", "open-new", "sealed-late", "sealed-new"],
            ["idle", "open-new", "open-old", "sealed-late"],
        ),
        (
            "default",
            ["open-old", "open-new", "sealed-late", "sealed-new"],
            ["sealed-late", "open-new", "idle", "open-old"],
        ),
    ],
)
def test_the_order(policy: str, served: list[str], evicted: list[str]) -> None:
    ranking = a_ranking(*ALL, policy=policy)
    assert [view.request_id for view in ranking.to_serve()] == served
    assert [view.request_id for view in ranking.to_evict()] == evicted


@pytest.mark.parametrize(("work_between", "first"), [(999, "short"), (1001, "long")])
def test_srpf_lets_a_shorter_one_go_first_if_it_comes_soon_enough(
    work_between: int, first: str
) -> None:
    """Ten tokens more are worth a thousand of the worker's."""
    long = a_request("long", sealed=True, arrival=1, last_event=1, known=50)
    short = a_request("short", sealed=True, arrival=2, last_event=2, known=40)
    later = short._replace(last_event_work=work_between)
    assert next(a_ranking(long, later, policy="srpf").to_serve()).request_id == first


@pytest.mark.parametrize("policy", POLICIES)
def test_guarded_sessions_come_first_and_keep_their_kv_longest(policy: str) -> None:
    guarded = [
        a_request(f"p{n}", arrival=90 + n, known=50, computed=1, num_blocks=1, guard_number=n)
        for n in (2, 1)
    ]
    ranking = a_ranking(*ALL, *guarded, policy=policy, guarded_first=True)
    assert [view.request_id for view in ranking.to_serve()][:2] == ["p1", "p2"]
    assert [view.request_id for view in ranking.to_evict()][-2:] == ["p2", "p1"]
    assert ranking.goes_before(guarded[1], guarded[0])
    assert ranking.goes_before(guarded[0], SEALED_LATE)


@pytest.mark.parametrize("policy", POLICIES)
def test_when_it_is_not_their_turn_guarded_sessions_still_keep_their_kv(policy: str) -> None:
    guarded = a_request("p", arrival=90, known=50, computed=1, num_blocks=1, guard_number=1)
    ranking = a_ranking(*ALL, guarded, policy=policy)
    assert next(ranking.to_serve()) is not guarded
    assert not any(ranking.goes_before(view, guarded) for view in ALL)
