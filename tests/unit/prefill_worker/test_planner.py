"""Phase 1, case by case."""

from __future__ import annotations

import pytest

from prefill_worker.planner import plan_step
from prefill_worker.policy import fcfs
from prefill_worker.types import (
    Deferral,
    DeferralReason,
    Eviction,
    EvictionReason,
    Grant,
    StepPlan,
)
from tests.builders import a_ledger, a_request, limits

pytestmark = pytest.mark.unit
FOR_HIGHER_RANK = EvictionReason.FOR_HIGHER_RANK


def test_an_open_session_keeps_its_last_token_back() -> None:
    plan = plan_step([a_request(known=10)], fcfs, limits())
    assert plan == StepPlan((Grant("a", 9),))


def test_a_sealed_session_computes_its_last_token() -> None:
    plan = plan_step([a_request(known=10, computed=9, sealed=True)], fcfs, limits())
    assert plan == StepPlan((Grant("a", 1),))


def test_a_session_without_work_gets_nothing() -> None:
    assert plan_step([a_request(known=10, computed=9)], fcfs, limits()) == StepPlan()


def test_an_empty_session_gets_nothing() -> None:
    assert plan_step([a_request(known=0)], fcfs, limits()) == StepPlan()


def test_sealed_sessions_are_served_before_open_ones() -> None:
    early = a_request("early", arrival=1, known=400)
    sealed = a_request("sealed", arrival=2, known=400, sealed=True)
    plan = plan_step([early, sealed], fcfs, limits(tokens=500))
    assert plan.grants == (Grant("sealed", 400), Grant("early", 100))


def test_the_step_never_exceeds_its_tokens() -> None:
    views = [a_request("a", known=400), a_request("b", arrival=2, known=400)]
    plan = plan_step(views, fcfs, limits(tokens=300))
    assert plan.grants == (Grant("a", 300),)
    assert plan.deferrals == (Deferral("b", DeferralReason.TOKEN_BUDGET),)


def test_the_step_never_exceeds_its_request_slots() -> None:
    views = [a_request("a", known=4), a_request("b", arrival=2, known=4)]
    plan = plan_step(views, fcfs, limits(requests=1))
    assert plan.deferrals == (Deferral("b", DeferralReason.REQUEST_SLOTS),)


def test_without_a_ledger_what_fits_is_computed_and_nobody_is_evicted() -> None:
    plan = plan_step([a_request(known=101)], fcfs, limits(free_blocks=2))
    assert plan == StepPlan((Grant("a", 64),))


def test_the_lowest_ranked_holder_is_evicted_first() -> None:
    wants = a_request("wants", sealed=True, known=64)
    idle = a_request("idle", arrival=1, known=33, computed=32, num_blocks=1)
    busy = a_request("busy", arrival=2, known=200, computed=32, num_blocks=1)
    ledger = a_ledger(wants=(), idle=(1,), busy=(2,))
    plan = plan_step([wants, idle, busy], fcfs, limits(free_blocks=1, tokens=64), ledger)
    assert plan.evictions == (Eviction("idle", 1, FOR_HIGHER_RANK),)
    assert plan.grants == (Grant("wants", 64),)


def test_nobody_is_evicted_for_a_lower_rank() -> None:
    first = a_request("first", arrival=1, known=33, computed=0, num_blocks=0)
    second = a_request("second", arrival=2, known=65, computed=0)
    ledger = a_ledger(first=(), second=())
    plan = plan_step([second, first], fcfs, limits(free_blocks=1), ledger)
    assert plan.grants == (Grant("first", 32),)
    assert plan.evictions == ()
    assert plan.deferrals == (Deferral("second", DeferralReason.NO_BLOCKS),)


def test_a_shared_block_is_free_only_after_its_last_holder() -> None:
    wants = a_request("wants", sealed=True, known=64)
    one = a_request("one", arrival=2, known=33, computed=32, num_blocks=1)
    two = a_request("two", arrival=3, known=33, computed=32, num_blocks=1)
    ledger = a_ledger(wants=(), one=(7,), two=(7,))
    plan = plan_step([wants, one, two], fcfs, limits(free_blocks=1), ledger)
    assert plan.evictions == (
        Eviction("two", 0, FOR_HIGHER_RANK),
        Eviction("one", 1, FOR_HIGHER_RANK),
    )


def test_an_evicted_session_computes_nothing_in_the_same_step() -> None:
    wants = a_request("wants", sealed=True, known=64)
    victim = a_request("victim", known=100, computed=64, num_blocks=2)
    ledger = a_ledger(wants=(), victim=(1, 2))
    plan = plan_step([wants, victim], fcfs, limits(free_blocks=0), ledger)
    assert plan.grants == (Grant("wants", 64),)
    assert plan.deferrals == ()


def test_leased_blocks_can_defer_even_the_first() -> None:
    wants = a_request("wants", sealed=True, known=64)
    plan = plan_step([wants], fcfs, limits(free_blocks=0), a_ledger(wants=()))
    assert plan == StepPlan(deferrals=(Deferral("wants", DeferralReason.NO_BLOCKS),))


def test_equal_ranks_are_served_by_id() -> None:
    views = [a_request("b", known=9), a_request("a", known=9)]
    plan = plan_step(views, fcfs, limits())
    assert [grant.request_id for grant in plan.grants] == ["a", "b"]
