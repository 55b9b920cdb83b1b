"""Phase 1 where sessions are answered: a token a step before any prefill."""

from __future__ import annotations

import pytest

from prefill_worker.inter_token import InterTokenTarget, num_tokens_within
from prefill_worker.planner import plan_step
from prefill_worker.policy import POLICIES
from prefill_worker.rank_index import RankIndex
from prefill_worker.types import Grant, RequestView, StepPlan, StopReason
from stream2llm.api.tenant import TenantShare
from tests.builders import LinearCosts, a_ledger, a_preemption, a_ranking, a_request, limits

pytestmark = pytest.mark.unit


def decoding(name: str, arrival: int, known: int = 100, num_blocks: int = 4) -> RequestView:
    return a_request(
        name,
        sealed=True,
        arrival=arrival,
        known=known,
        computed=known - 1,
        num_blocks=num_blocks,
        is_answering=True,
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_answers_get_their_token_before_any_prefill(policy: str) -> None:
    sealed = a_request("sealed", arrival=1, known=400, sealed=True)
    views = [sealed, decoding("b", 3), decoding("a", 2)]
    plan = plan_step(
        a_ranking(*views, policy=policy), limits(tokens=300), a_ledger(), a_preemption()
    )
    assert plan.grants == (Grant("a", 1), Grant("b", 1), Grant("sealed", 298))


def test_answers_do_not_keep_open_sessions_out_of_a_step() -> None:
    """Under srpf, sealed ones do, whose clients wait for a first token."""
    views = [decoding("a", 1), a_request("open", arrival=2, known=400)]
    plan = plan_step(a_ranking(*views, policy="srpf"), limits(), a_ledger(), a_preemption())
    assert plan.grants == (Grant("a", 1), Grant("open", 399))
    short = limits(open_tokens=100)
    plan = plan_step(a_ranking(*views, policy="srpf"), short, a_ledger(), a_preemption())
    assert plan.grants == (Grant("a", 1), Grant("open", 100))


def test_even_guarded_sessions_come_after_answers() -> None:
    guarded = a_request("guarded", arrival=1, known=100, guard_number=1)
    ranking = a_ranking(guarded, decoding("a", 2), guarded_first=True)
    plan = plan_step(ranking, limits(), a_ledger(), a_preemption())
    assert [grant.request_id for grant in plan.grants] == ["a", "guarded"]


def test_a_session_that_has_lost_kv_of_its_answer_is_prefilled_like_any_other() -> None:
    lost = decoding("lost", 1)._replace(num_computed_tokens=64, num_blocks=2)
    plan = plan_step(a_ranking(lost, decoding("a", 2)), limits(), a_ledger(), a_preemption())
    assert plan.grants == (Grant("a", 1), Grant("lost", 36))


def test_an_answer_evicts_sessions_that_prefill_and_then_later_answers() -> None:
    """The last of 97 tokens needs a fourth block; nothing is free."""
    needs = decoding("needs", 1, known=97, num_blocks=3)
    later = decoding("later", 2, num_blocks=4)
    sealed = a_request("sealed", arrival=0, sealed=True, known=400, computed=32, num_blocks=1)
    full = limits(free_blocks=0)
    ledger = a_ledger(needs=(1, 2, 3), later=(4, 5, 6, 7), sealed=(8,))
    plan = plan_step(a_ranking(needs, later, sealed), full, ledger, a_preemption())
    assert [each.request_id for each in plan.evictions] == ["sealed"]
    assert plan.grants == (Grant("needs", 1), Grant("later", 1))
    ledger = a_ledger(needs=(1, 2, 3), later=(4, 5, 6, 7))
    plan = plan_step(a_ranking(needs, later), full, ledger, a_preemption())
    assert [each.request_id for each in plan.evictions] == ["later"]
    assert plan.grants == (Grant("needs", 1),)


@pytest.mark.parametrize("guarded_first", [False, True])
def test_an_answer_evicts_even_guarded_sessions(guarded_first: bool) -> None:
    """Otherwise answers that lack a block and guarded sessions that hold all others wait for ever."""
    needs = decoding("needs", 1, known=97, num_blocks=3)
    guarded = [
        a_request(name, sealed=True, arrival=n, known=90, computed=32, num_blocks=1, guard_number=n)
        for n, name in enumerate(("g2", "g3"), 2)
    ]
    ranking = a_ranking(needs, *guarded, guarded_first=guarded_first)
    ledger = a_ledger(needs=(1, 2, 3), g2=(4,), g3=(5,))
    plan = plan_step(ranking, limits(free_blocks=0), ledger, a_preemption())
    assert [each.request_id for each in plan.evictions] == ["g3"]
    assert plan.grants[0] == Grant("needs", 1)


def test_answers_of_two_tenants_that_hold_all_memory_go_on() -> None:
    ranking = RankIndex(POLICIES["fcfs"])
    for name, arrival in (("a", 1), ("b", 2)):
        ranking.enter(name, TenantShare(name))
        ranking.put(decoding(name, arrival, known=97, num_blocks=3))
    ledger = a_ledger(a=(1, 2, 3), b=(4, 5, 6))
    plan = plan_step(ranking, limits(free_blocks=0), ledger, a_preemption())
    assert [each.request_id for each in plan.evictions] == ["b"]
    assert plan.grants == (Grant("a", 1),)


def test_an_answer_without_a_block_does_not_hold_up_the_others() -> None:
    needs = decoding("needs", 2, known=97, num_blocks=3)
    ranking = a_ranking(decoding("a", 1), needs, decoding("b", 3, known=90, num_blocks=3))
    ledger = a_ledger(leased=(9,), a=(1, 2, 3, 4), needs=(1, 2, 3), b=(1, 2, 3))
    plan = plan_step(ranking, limits(free_blocks=0), ledger, a_preemption())
    assert plan.grants == (Grant("a", 1), Grant("b", 1))
    assert plan.short_of_memory == ("needs",)


def test_sealed_sessions_do_not_evict_answers() -> None:
    sealed = a_request("sealed", arrival=1, sealed=True, known=64)
    ledger = a_ledger(a=(1, 2, 3, 4))
    plan = plan_step(
        a_ranking(sealed, decoding("a", 2)), limits(free_blocks=0), ledger, a_preemption()
    )
    assert plan == StepPlan(
        (Grant("a", 1),),
        stop=StopReason.KV_MEMORY,
        stopped_at="sealed",
        short_of_memory=("sealed",),
    )


def test_prefill_beside_answers_is_cut_to_its_time() -> None:
    preemption = a_preemption(costs=LinearCosts(token_s=0.001))
    first = a_request("first", arrival=1, known=60, sealed=True)
    second = a_request("second", arrival=2, known=400, sealed=True)
    bounded = limits(prefill_s=0.1)
    plan = plan_step(a_ranking(first, second, decoding("a", 3)), bounded, a_ledger(), preemption)
    assert plan.grants == (Grant("a", 1), Grant("first", 60), Grant("second", 40))
    alone = plan_step(a_ranking(first, second), bounded, a_ledger(), preemption)
    assert alone.grants == (Grant("first", 60), Grant("second", 400))


def test_prefill_goes_on_by_a_block_where_no_step_meets_the_target() -> None:
    preemption = a_preemption(costs=LinearCosts(token_s=0.001))
    views = [a_request(n, arrival=i, known=90, sealed=True) for i, n in enumerate("bc")]
    plan = plan_step(
        a_ranking(*views, decoding("a", 3)), limits(prefill_s=0.0), a_ledger(), preemption
    )
    assert plan.grants == (Grant("a", 1), Grant("b", 32))
    assert (plan.stop, plan.stopped_at) == (StopReason.INTER_TOKEN_TARGET, "c")


def test_the_time_for_prefill_is_what_answers_alone_leave_of_the_target() -> None:
    pace = InterTokenTarget(100)
    assert pace.prefill_s == pytest.approx(0.1)
    pace.observe(num_decoding=3, num_computing=3, step_s=0.03)
    assert pace.prefill_s == pytest.approx(0.07)
    pace.observe(num_decoding=3, num_computing=4, step_s=9.0)
    assert pace.prefill_s == pytest.approx(0.07), "prefill took part in that step"
    pace.observe(num_decoding=0, num_computing=0, step_s=9.0)
    pace.observe(num_decoding=1, num_computing=1, step_s=0.13)
    assert pace.prefill_s == pytest.approx(0.06)
    assert InterTokenTarget(None).prefill_s is None


def test_tokens_within_a_time() -> None:
    seconds = LinearCosts(token_s=0.5).recompute_s
    assert [num_tokens_within(left, 10, 8, seconds) for left in (0.4, 0.5, 1.9, 4.0, 9.0)] == [
        *(0, 1, 3, 8, 8)
    ]
