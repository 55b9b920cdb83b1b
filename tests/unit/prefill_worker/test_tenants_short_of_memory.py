"""Tenants that stand in each other's way, in the production session table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefill_worker.planner import plan_step
from prefill_worker.policy import POLICIES
from prefill_worker.rank_index import RankIndex
from prefill_worker.session_table import SessionTable
from prefill_worker.types import RequestView, StepPlan, StopReason
from stream2llm.api.tenant import TenantShare
from tests.builders import BY_RANK, a_ledger, a_request, limits
from tests.planner_driver import PlannerDriver
from tests.session_machine import Tokens

NUM_BLOCKS, BLOCK_SIZE, TOKEN_BUDGET = 100, 4, 8
# Half of the memory, and the token that an open session keeps back.
NUM_HALF = NUM_BLOCKS * BLOCK_SIZE // 2 + 1
# More than any of these tests needs while work goes on.
MAX_STEPS = 400


def tokens(first: int, count: int) -> Tokens:
    return tuple(range(first, first + count))


def by_first_letter(name: str) -> TenantShare:
    return TenantShare(name[0])


def a_driver(policy: str) -> PlannerDriver:
    return PlannerDriver(
        policy=policy,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        token_budget=TOKEN_BUDGET,
        step_requests=8,
        starvation_guard_steps=10**9,
        tenant_of=by_first_letter,
    )


def run_until_idle(driver: PlannerDriver) -> None:
    for _ in range(MAX_STEPS):
        if not driver.has_work():
            return
        driver.step()
        driver.check()
    raise AssertionError(f"still busy after {MAX_STEPS} steps with {list(driver.sessions)}")


@pytest.mark.parametrize("num_wanted", [TOKEN_BUDGET - 2, 3 * TOKEN_BUDGET])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_hit_behind_a_session_without_memory_is_taken(policy: str, num_wanted: int) -> None:
    """That session uses none of the step's tokens, however many it wants."""
    driver = a_driver(policy)
    driver.open("a1", tokens(1000, NUM_HALF), hand_over=False)
    driver.open("b2", tokens(2000, NUM_HALF), hand_over=False)
    run_until_idle(driver)
    assert not driver.pool.free
    driver.seal("a1", tokens(5000, num_wanted))
    driver.open("b1", tokens(2000, NUM_HALF), hand_over=False)
    driver.seal("b1", tokens(6000, 3))
    run_until_idle(driver)
    assert driver.answers().keys() == {"a1", "b1"}


def test_a_hit_that_is_not_taken_does_not_stop_all() -> None:
    """The second step that is left to it guards the policy's first session."""
    table = SessionTable(POLICIES["fcfs"], 10**9, num_lost_blocks=8)
    for name, known, num_blocks in [("a", 200, 2), ("b", 65, 2), ("equal", 64, 0)]:
        table.open(name, revision=1, sealed=name != "b", tenant=by_first_letter(name))
        table.update(name, known, num_blocks * 32, num_blocks)
    ledger = replace(a_ledger(a=(1, 2), b=(3, 4)), hits=frozenset({"equal"}))

    def step() -> StepPlan:
        table.begin_step()
        plan = table.plan(limits(tokens=64, free_blocks=0), ledger, BY_RANK)
        table.end_step(plan, num_free_blocks=0)
        return plan

    assert step() == StepPlan((), (), StopReason.KV_LEASED, "a", ("equal",), (), ("a",))
    assert [grant.request_id for grant in step().grants] == ["a"]


@pytest.mark.parametrize(("priority", "may"), [(-1, False), (0, False), (1, True)])
def test_a_share_of_the_memory_is_kept_from_equal_and_lower_priorities(
    priority: int, may: bool
) -> None:
    index = RankIndex(POLICIES["fcfs"])
    idle = a_request("idle", known=65, computed=64, num_blocks=2)
    busy = a_request("busy", arrival=2, known=200, computed=64, num_blocks=2, sealed=True)
    index.enter("idle", TenantShare("idle"))
    index.enter("busy", TenantShare("busy", priority=priority))
    index.put(idle)
    index.put(busy)
    assert index.may_evict(busy, idle) is may


class CountingIndex(RankIndex):
    """Counts how often it is asked whom to evict."""

    num_asked = 0

    def may_evict(self, beneficiary: RequestView, victim: RequestView) -> bool:
        self.num_asked += 1
        return super().may_evict(beneficiary, victim)


@pytest.mark.parametrize("num_tenants", [1, 4, 32])
def test_victims_that_are_out_of_reach_are_looked_at_once(num_tenants: int) -> None:
    """Not once for each session that a plan serves."""
    num_protected, num_served = 1000, 32
    index = CountingIndex(POLICIES["fcfs"])
    blocks = {"idle": tuple(range(num_protected))}
    protected = TenantShare("protected", weight=2.0 * num_tenants)
    index.enter("idle", TenantShare("t0"))
    index.put(a_request("idle", known=32_001, computed=32_000, num_blocks=num_protected))
    for n in range(num_protected):
        name = f"p{n}"
        index.enter(name, protected)
        # Last in rank, and so the first to be evicted.
        index.put(a_request(name, arrival=1000 + n, known=33, computed=32, num_blocks=1))
        blocks[name] = (num_protected + n,)
    for n in range(num_served):
        index.enter(f"s{n}", TenantShare(f"t{n % num_tenants}"))
        index.put(a_request(f"s{n}", arrival=10 + n, known=32, sealed=True))
    room = limits(tokens=2000, requests=num_served, free_blocks=0)
    plan = plan_step(index, room, a_ledger(**blocks), BY_RANK)
    assert len(plan.grants) == num_served
    assert [eviction.request_id for eviction in plan.evictions] == ["idle"]
    assert index.num_asked <= num_protected + 2 * num_served


def test_only_sessions_of_tenants_without_memory_count_as_short_of_it() -> None:
    """Others may wait for tokens of the step."""
    table = SessionTable(POLICIES["fcfs"], 10**9, num_lost_blocks=8)
    # a needs more blocks than there are; b has some, and more to do than a step computes.
    for name, known, num_blocks in [("a1", 200, 2), ("a2", 200, 0), ("a3", 200, 0)]:
        table.open(name, revision=1, sealed=True, tenant=TenantShare("a"))
        table.update(name, known, num_blocks * 32, num_blocks)
    for name in ("b1", "b2", "b3"):
        table.open(name, revision=1, sealed=True, tenant=TenantShare("b", weight=9))
        table.update(name, 64, 32, 2)
    ledger = a_ledger(a1=(1, 2), b1=(3, 4), b2=(5, 6), b3=(7, 8))
    table.begin_step()
    plan = table.plan(limits(tokens=48, free_blocks=0), ledger, BY_RANK)
    assert [grant.request_id for grant in plan.grants] == ["b1", "b2"]
    assert plan.short_of_memory == ("a1",)
    assert table.num_short_of_memory(plan) == 3
    assert table.num_with_claim == 6
    assert table.num_short_of_memory(StepPlan()) == 0
