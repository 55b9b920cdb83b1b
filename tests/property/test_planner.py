"""Phase 1 against its invariants.

1. Grants never exceed the step's tokens, slots, or what a session wants.
2. Blocks allocated never exceed the free ones and those that evictions free.
3. Nobody is both evicted and served; nobody is evicted for a lower rank.
4. Planning changes nothing and gives the same plan again.
5. The top-ranked session with work is served whenever blocks of other sessions could make room.
"""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefill_worker.planner import num_blocks_needed, plan_step, ranked
from prefill_worker.policy import fcfs
from prefill_worker.types import BlockLedger, RequestView, StepLimits

pytestmark = pytest.mark.property
BLOCK_SIZE = 4


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[RequestView], StepLimits, BlockLedger]:
    """Sessions with private blocks, some of them shared, and a step's limits."""
    views, held = [], {}
    next_block = 0
    for index in range(draw(st.integers(1, 8))):
        known = draw(st.integers(0, 40))
        sealed = draw(st.booleans()) and known > 0
        computed = draw(st.integers(0, max(known - 1, 0)))
        num_blocks = -(-computed // BLOCK_SIZE)
        num_shared = draw(st.integers(0, min(num_blocks, 2)))
        own = range(next_block, next_block + num_blocks - num_shared)
        next_block += num_blocks
        name = f"r{index}"
        held[name] = (*range(1000, 1000 + num_shared), *own)
        views.append(RequestView(name, sealed, index, index, known, computed, num_blocks))
    counts: dict[int, int] = {}
    for ids in held.values():
        for block_id in ids:
            counts[block_id] = counts.get(block_id, 0) + 1
    limits = StepLimits(
        num_tokens=draw(st.integers(1, 64)),
        num_requests=draw(st.integers(1, 8)),
        num_free_blocks=draw(st.integers(0, 12)),
        block_size=BLOCK_SIZE,
    )
    return views, limits, BlockLedger(held, counts)


@given(situations())
def test_1_grants_stay_inside_the_step(
    case: tuple[list[RequestView], StepLimits, BlockLedger],
) -> None:
    views, limits, ledger = case
    plan = plan_step(views, fcfs, limits, ledger)
    wanted = {view.request_id: view.num_wanted_tokens for view in views}
    assert sum(grant.num_tokens for grant in plan.grants) <= limits.num_tokens
    assert len(plan.grants) <= limits.num_requests
    assert all(0 < grant.num_tokens <= wanted[grant.request_id] for grant in plan.grants)


@given(situations())
def test_2_blocks_are_there_when_they_are_allocated(
    case: tuple[list[RequestView], StepLimits, BlockLedger],
) -> None:
    views, limits, ledger = case
    plan = plan_step(views, fcfs, limits, ledger)
    counts = dict(ledger.ref_counts)
    freed = 0
    for eviction in plan.evictions:
        gained = 0
        for block_id in ledger.block_ids_by_request[eviction.request_id]:
            counts[block_id] -= 1
            gained += counts[block_id] == 0
        assert gained == eviction.num_blocks_freed
        freed += gained
    by_id = {view.request_id: view for view in views}
    needed = sum(
        num_blocks_needed(by_id[grant.request_id], grant.num_tokens, BLOCK_SIZE)
        for grant in plan.grants
    )
    assert needed <= limits.num_free_blocks + freed


@given(situations())
def test_3_victims_rank_below_all_who_are_served(
    case: tuple[list[RequestView], StepLimits, BlockLedger],
) -> None:
    views, limits, ledger = case
    plan = plan_step(views, fcfs, limits, ledger)
    place = {view.request_id: i for i, view in enumerate(ranked(views, fcfs))}
    served = [place[grant.request_id] for grant in plan.grants]
    victims = [place[eviction.request_id] for eviction in plan.evictions]
    assert not set(served) & set(victims)
    assert victims == sorted(victims, reverse=True)


@given(situations())
def test_4_planning_changes_nothing(
    case: tuple[list[RequestView], StepLimits, BlockLedger],
) -> None:
    views, limits, ledger = case
    before = copy.deepcopy(case)
    assert plan_step(views, fcfs, limits, ledger) == plan_step(views, fcfs, limits, ledger)
    assert case == before


@given(situations())
def test_5_the_first_in_rank_moves_when_there_is_any_room(
    case: tuple[list[RequestView], StepLimits, BlockLedger],
) -> None:
    views, limits, ledger = case
    waiting = [view for view in ranked(views, fcfs) if view.num_wanted_tokens]
    if not waiting:
        return
    first = waiting[0]
    own = set(ledger.block_ids_by_request[first.request_id])
    others = set(ledger.ref_counts) - own
    room = (limits.num_free_blocks + len(others) + first.num_blocks) * BLOCK_SIZE
    plan = plan_step(views, fcfs, limits, ledger)
    if room > first.num_computed_tokens:
        assert plan.grants
        assert plan.grants[0].request_id == first.request_id
