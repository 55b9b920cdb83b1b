"""Phase 1 against its invariants, for every policy.

1. Grants never exceed the step's tokens, slots, or what a session wants.
2. Blocks allocated never exceed the free ones and those that evictions free.
3. No session is both evicted and served; none with new tokens is evicted for one that goes after
   it, and none at all for a session that would only restore what it lost.
4. Planning changes nothing and gives the same plan again.
5. The first in rank moves whenever blocks that it may take could make room: all but those of
   hand-overs and, when it is not their turn, of guarded sessions.
6. No eviction is in vain: with any one block less of a victim its beneficiary would get less.
7. Who is served is a prefix of the ranking, without those that were evicted or follow.
8. No session begins with a block that the step computes already; one that is left out waits for one that is served.
9. KV comes back from where the computed tokens end, nothing is computed beyond it, and sessions whose
   KV is being restored are left alone. What goes to the host has room there, is full, and unshared.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cost_profiles.decision import Mode
from prefill_worker.planner import num_blocks_needed, plan_step
from prefill_worker.policy import POLICIES
from prefill_worker.preemption import Preemption
from prefill_worker.rank_index import RankIndex
from prefill_worker.types import BlockLedger, RequestView, StepLimits, StepPlan, StopReason
from tests.builders import BY_RANK, LinearCosts, a_preemption, a_ranking

BLOCK_SIZE = 4


@dataclass(frozen=True)
class Situation:
    """Sessions, some of whose blocks are shared with others or under a lease."""

    views: list[RequestView]
    policy: str
    limits: StepLimits
    ledger: BlockLedger
    guarded_first: bool

    @property
    def ranking(self) -> RankIndex:
        return a_ranking(*self.views, policy=self.policy, guarded_first=self.guarded_first)

    @property
    def plan(self) -> StepPlan:
        return plan_step(self.ranking, self.limits, self.ledger, BY_RANK)

    @property
    def by_id(self) -> dict[str, RequestView]:
        return {view.request_id: view for view in self.views}

    def num_step_tokens(self, first: RequestView) -> int:
        """The budget of a step that begins with this session: some policies limit open ones."""
        is_short = self.ranking.keeps_sealed_apart and not first.sealed
        most = self.limits.num_open_tokens if is_short else None
        return min(self.limits.num_tokens, most or self.limits.num_tokens)

    def num_freed(self, num_kept: dict[str, int]) -> int:
        """Blocks without a holder when those sessions keep so many of theirs."""
        counts = dict(self.ledger.ref_counts)
        for victim, kept in num_kept.items():
            for block_id in self.ledger.block_ids(victim)[kept:]:
                counts[block_id] -= 1
        return sum(count == 0 for count in counts.values())

    def num_allocated(self, plan: StepPlan) -> int:
        return sum(
            num_blocks_needed(self.by_id[grant.request_id], grant.num_tokens, BLOCK_SIZE)
            for grant in plan.grants
        )


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    views, held, keys = [], {}, {}
    counts: dict[int, int] = {}
    next_block = 0
    for index in range(draw(st.integers(1, 8))):
        known = draw(st.integers(0, 40))
        sealed = draw(st.booleans()) and known > 0
        computed = draw(st.integers(0, max(known - 1, 0)))
        num_blocks = -(-computed // BLOCK_SIZE)
        num_shared = draw(st.integers(0, min(num_blocks, 2)))
        own = range(next_block, next_block + num_blocks - num_shared)
        next_block += len(own)
        name = f"r{index}"
        # Keys that begin alike, as those of sequences with a common prefix do.
        num_alike, num_full = draw(st.integers(0, 4)), known // BLOCK_SIZE
        keys[name] = tuple(n if n < num_alike else (name, n) for n in range(num_full))
        held[name] = (*range(1000, 1000 + num_shared), *own)
        event, guard_number = draw(st.integers(1, 20)), draw(st.sampled_from([0, 0, 0, index + 1]))
        reached = draw(st.sampled_from([computed, known]))
        view = RequestView(
            name, sealed, index, event, known, computed, num_blocks, reached, guard_number
        )
        # A guarded session has new tokens to compute; see session_table.py.
        views.append(view if view.has_claim else view._replace(guard_number=0))
        for block_id in held[name]:
            # One more holder than sessions: a lease on a block that is shared with it.
            lease = draw(st.integers(0, 9)) == 0 and block_id not in counts
            counts[block_id] = counts.get(block_id, 0) + 1 + lease
    limits = StepLimits(
        num_tokens=draw(st.integers(1, 64)),
        num_requests=draw(st.integers(1, 8)),
        num_free_blocks=draw(st.integers(0, 12)),
        block_size=BLOCK_SIZE,
        num_open_tokens=draw(st.none() | st.integers(1, 64)),
    )
    policy = draw(st.sampled_from(sorted(POLICIES)))
    hits = frozenset(name for name in held if draw(st.integers(0, 9)) == 0)
    return Situation(
        views, policy, limits, BlockLedger(held, counts, keys, hits), draw(st.booleans())
    )


@given(situations())
def test_1_grants_stay_inside_the_step(case: Situation) -> None:
    plan = case.plan
    assert sum(grant.num_tokens for grant in plan.grants) <= case.limits.num_tokens
    assert len(plan.grants) <= case.limits.num_requests
    for grant in plan.grants:
        assert 0 < grant.num_tokens <= case.by_id[grant.request_id].num_wanted_tokens


@given(situations())
def test_2_blocks_are_there_when_they_are_allocated(case: Situation) -> None:
    plan = case.plan
    freed = case.num_freed({e.request_id: e.num_blocks_kept for e in plan.evictions})
    assert sum(eviction.num_blocks_freed for eviction in plan.evictions) == freed
    assert case.num_allocated(plan) <= case.limits.num_free_blocks + freed


@given(situations())
def test_3_victims_are_idle_or_go_after_the_one_they_make_room_for(case: Situation) -> None:
    plan, ranking, by_id = case.plan, case.ranking, case.by_id
    served = {grant.request_id for grant in plan.grants}
    victims = [eviction.request_id for eviction in plan.evictions]
    assert not served & set(victims)
    assert len(set(victims)) == len(victims)
    for eviction in plan.evictions:
        victim, beneficiary = by_id[eviction.request_id], by_id[eviction.beneficiary]
        assert beneficiary.has_claim
        assert not victim.has_claim or ranking.goes_before(beneficiary, victim)


@given(situations())
def test_4_planning_changes_nothing(case: Situation) -> None:
    before = copy.deepcopy(case)
    ranking = case.ranking
    first = plan_step(ranking, case.limits, case.ledger, BY_RANK)
    assert plan_step(ranking, case.limits, case.ledger, BY_RANK) == first
    assert case == before
    assert list(ranking.to_serve()) == list(case.ranking.to_serve())


@given(situations())
def test_5_the_first_in_rank_moves_when_there_is_any_room(case: Situation) -> None:
    order = list(case.ranking.to_serve())
    # Hits are taken before the plan, as many as a step has slots.
    waiting = [view for view in order if view.request_id not in case.ledger.hits]
    if waiting and order.index(waiting[0]) >= case.limits.num_requests:
        return
    if not waiting:
        return
    first = waiting[0]
    others = {
        view.request_id: 0
        for view in case.views
        if view is not first and (not view.has_claim or case.ranking.goes_before(first, view))
    }
    num_blocks = first.num_blocks + case.limits.num_free_blocks + case.num_freed(others)
    wanted = min(first.num_wanted_tokens, case.num_step_tokens(first))
    room = num_blocks * BLOCK_SIZE - first.num_computed_tokens
    plan = case.plan
    if not first.has_claim:
        assert not plan.evictions
    elif room > 0:
        assert plan.grants[0].request_id == first.request_id
        assert plan.grants[0].num_tokens == min(wanted, room)
    else:
        assert not plan.grants
        assert not plan.evictions
        assert (plan.stop, plan.stopped_at) == (StopReason.KV_LEASED, first.request_id)


@given(situations())
def test_6_no_eviction_is_in_vain(case: Situation) -> None:
    """For plans that end with their first beneficiary; later ones start from what it left."""
    plan, by_id = case.plan, case.by_id
    if not plan.evictions or plan.evictions[0].beneficiary != plan.grants[-1].request_id:
        return
    view = by_id[plan.grants[-1].request_id]
    before = StepPlan(plan.grants[:-1])
    tokens_left = case.limits.num_tokens - sum(grant.num_tokens for grant in before.grants)
    wanted = min(view.num_wanted_tokens, tokens_left)
    needed = num_blocks_needed(view, wanted, BLOCK_SIZE)
    num_free = case.limits.num_free_blocks - case.num_allocated(before)
    kept = {eviction.request_id: eviction.num_blocks_kept for eviction in plan.evictions}
    enough = min(needed, num_free + case.num_freed(kept))
    for victim in kept:
        one_more = {**kept, victim: kept[victim] + 1}
        assert num_free + case.num_freed(one_more) < enough


@given(situations())
def test_6_whole_requests_lose_everything(case: Situation) -> None:
    limits = case.limits._replace(evicts_whole_requests=True)
    plan = plan_step(case.ranking, limits, case.ledger, BY_RANK)
    assert all(eviction.num_blocks_kept == 0 for eviction in plan.evictions)
    assert [grant.request_id for grant in plan.grants][:1] == [
        grant.request_id for grant in case.plan.grants
    ][:1]


@given(situations())
def test_7_who_is_served_is_a_prefix_of_the_ranking(case: Situation) -> None:
    plan = case.plan
    left_out = {eviction.request_id for eviction in plan.evictions}.union(plan.deduplicated)
    order = [v.request_id for v in case.ranking.to_serve() if v.request_id not in left_out]
    served = [grant.request_id for grant in plan.grants]
    assert order[: len(served)] == served
    if plan.stop is StopReason.ALL_SERVED:
        assert len(served) == len(order)
    else:
        assert order[len(served)] == plan.stopped_at


@given(situations())
def test_8_deduplicated_sessions_wait_for_a_block_that_the_step_computes(case: Situation) -> None:
    plan, by_id = case.plan, case.by_id
    computing: set[object] = set()
    for grant in plan.grants:
        start = by_id[grant.request_id].num_computed_tokens
        keys = case.ledger.block_keys(
            grant.request_id, start // BLOCK_SIZE, (start + grant.num_tokens) // BLOCK_SIZE
        )
        assert not computing.intersection(keys[:1])
        computing.update(keys)
    for waiting in set(plan.deduplicated) - case.ledger.hits:
        next_block = by_id[waiting].num_computed_tokens // BLOCK_SIZE
        assert computing.intersection(case.ledger.block_keys(waiting, next_block, next_block + 1))


@st.composite
def swapping(draw: st.DrawFn) -> tuple[Situation, Preemption]:
    """Some sessions have blocks on the host, of some they are on their way back."""
    case = draw(situations())
    views = []
    for view in case.views:
        first = -(-view.num_computed_tokens // BLOCK_SIZE)
        last = max(view.num_known_tokens - 1, 0) // BLOCK_SIZE
        if first < last and draw(st.booleans()):
            start = draw(st.integers(first, last - 1))
            stop = draw(st.integers(start + 1, last))
            view = view._replace(host_start=start, host_stop=stop)
        is_loading = draw(st.integers(0, 5)) == 0
        views.append(view._replace(is_loading=is_loading))
    num_host_slots = draw(st.integers(0, 12))
    case = dataclasses.replace(
        case, views=views, limits=case.limits._replace(num_host_slots=num_host_slots)
    )
    costs = LinearCosts(token_s=1.0, block_s=1.0, copy_s=draw(st.sampled_from([0.0, 4.0])))
    return case, a_preemption(draw(st.sampled_from(list(Mode))), costs, BLOCK_SIZE)


@given(swapping())
def test_9_kv_comes_back_where_the_computed_tokens_end(
    situation: tuple[Situation, Preemption],
) -> None:
    case, preemption = situation
    plan, by_id = plan_step(case.ranking, case.limits, case.ledger, preemption), case.by_id
    for load in plan.loads:
        view = by_id[load.request_id]
        assert load.first_block == view.host_start
        assert view.host_start * BLOCK_SIZE == view.num_computed_tokens
        assert 0 < load.num_blocks <= view.host_stop - view.host_start
    for grant in plan.grants:
        view = by_id[grant.request_id]
        if view.host_stop:
            end = view.num_computed_tokens + grant.num_tokens
            assert end <= view.host_start * BLOCK_SIZE
    freed = case.num_freed({e.request_id: e.num_blocks_kept for e in plan.evictions})
    loaded = sum(load.num_blocks for load in plan.loads)
    assert case.num_allocated(plan) + loaded <= case.limits.num_free_blocks + freed
    served = [each.request_id for each in (*plan.grants, *plan.loads)]
    touched = [*served, *(eviction.request_id for eviction in plan.evictions)]
    assert len(set(touched)) == len(touched)
    assert not any(by_id[name].is_loading for name in touched)


@given(swapping())
def test_9_what_goes_to_the_host_is_full_and_nobody_elses(
    situation: tuple[Situation, Preemption],
) -> None:
    case, preemption = situation
    plan, by_id = plan_step(case.ranking, case.limits, case.ledger, preemption), case.by_id
    assert sum(e.swap.num_blocks for e in plan.evictions) <= case.limits.num_host_slots
    counts = dict(case.ledger.ref_counts)
    for eviction in plan.evictions:
        for block_id in case.ledger.block_ids(eviction.request_id)[eviction.num_blocks_kept :]:
            counts[block_id] -= 1
    for eviction in plan.evictions:
        swap, view = eviction.swap, by_id[eviction.request_id]
        if not swap.num_blocks:
            continue
        assert preemption.mode is not Mode.RECOMPUTE
        assert eviction.num_blocks_kept <= swap.start
        assert swap.stop * BLOCK_SIZE <= view.num_computed_tokens
        held = case.ledger.block_ids(eviction.request_id)
        assert all(counts[block_id] for block_id in held[eviction.num_blocks_kept : swap.start])
        assert not counts[held[swap.start]]


@given(swapping())
def test_9_the_first_in_rank_moves_or_its_kv_does(situation: tuple[Situation, Preemption]) -> None:
    case, preemption = situation
    order = [
        view
        for view in case.ranking.to_serve()
        if not view.is_loading and view.request_id not in case.ledger.hits
    ]
    if len(case.ledger.hits) or not order:
        return
    first, plan = order[0], plan_step(case.ranking, case.limits, case.ledger, preemption)
    has_room = first.num_blocks + case.limits.num_free_blocks > (
        first.num_computed_tokens // BLOCK_SIZE
    )
    if has_room:
        served = [*plan.grants, *plan.loads]
        assert first.request_id in {each.request_id for each in served}
    if plan.grants and not plan.loads:
        assert plan.grants[0].request_id == first.request_id
