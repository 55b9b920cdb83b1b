"""The order between tenants, in the production planner.

1. With one tenant, whatever its weight, priority and debt, the order is the policy's own.
2. With several, each one's sessions keep the policy's order, all are yielded once, and those
   that would only restore what they lost come last.
3. Nothing is lost: with several tenants and too little memory every session ends, and every
   block comes back (the invariants of tests/session_machine.py).
4. No tenant that had work all the time is ahead of another one of its priority by more than
   one session and one step, by weight.
5. The cost of a plan does not depend on how many sessions or tenants wait.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from prefill_worker.policy import POLICIES
from prefill_worker.rank_index import RankIndex
from prefill_worker.session_table import SessionTable
from prefill_worker.types import BlockLedger, Grant, RequestView, StepLimits, StepPlan
from stream2llm.api.tenant import TenantShare
from tests.builders import BY_RANK, LinearCosts, a_preemption
from tests.examples import examples
from tests.planner_driver import PlannerDriver
from tests.session_machine import SessionMachine

NO_BLOCKS = BlockLedger({}, {})
shares = st.builds(
    TenantShare,
    st.sampled_from(["acme", "zeta", "tiny"]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([-1, 0, 0, 0, 2]),
)


@st.composite
def sessions(draw: st.DrawFn) -> list[RequestView]:
    views = []
    for arrival in range(1, draw(st.integers(1, 9))):
        known = draw(st.integers(1, 20))
        views.append(
            RequestView(
                f"r{arrival}",
                sealed=draw(st.booleans()),
                arrival=arrival,
                last_event=draw(st.integers(1, 9)),
                num_known_tokens=known,
                num_computed_tokens=draw(st.integers(0, known - 1)),
                num_blocks=draw(st.integers(0, 3)),
                num_reached_tokens=draw(st.integers(0, known)),
                guard_number=draw(st.sampled_from([0, 0, 0, arrival])),
            )
        )
    return views


def indexed(
    policy: str, views: list[RequestView], of: Callable[[str], TenantShare], charges: list[int]
) -> RankIndex:
    """Ranked, after each session has been charged something."""
    index = RankIndex(POLICIES[policy])
    for view, charge in zip(views, charges, strict=False):
        index.enter(view.request_id, of(view.request_id))
        index.put(view)
        index.begin_step()
        index.charge([Grant(view.request_id, charge)] if view.num_wanted_tokens else [])
    return index


charged = st.lists(st.integers(0, 99), min_size=9, max_size=9)
policies = st.sampled_from(sorted(POLICIES))


@given(policies, sessions(), shares, charged, st.booleans())
def test_1_one_tenant_has_the_policys_own_order(
    policy: str, views: list[RequestView], share: TenantShare, charges: list[int], turn: bool
) -> None:
    alone = indexed(policy, views, lambda _: share, charges)
    alone.guarded_first = turn
    keys = {view.request_id: POLICIES[policy].serving_key(view, view.has_claim) for view in views}
    plain = sorted(views, key=lambda view: keys[view.request_id])
    if turn:
        plain.sort(key=lambda view: view.guard_number or 99)
    assert list(alone.to_serve()) == [view for view in plain if view.num_wanted_tokens]
    for first, second in combinations(views, 2):
        may = not second.has_claim or alone.goes_before(first, second)
        assert alone.may_evict(first, second) == may


@given(policies, sessions(), st.lists(shares, min_size=9, max_size=9), charged)
def test_2_each_tenants_sessions_keep_the_policys_order(
    policy: str, views: list[RequestView], of: list[TenantShare], charges: list[int]
) -> None:
    # One tenant has one weight and one priority.
    newest = {share.name: share for share in of}
    tenants = {f"r{n}": newest[share.name] for n, share in enumerate(of, 1)}
    index = indexed(policy, views, tenants.__getitem__, charges)
    served = list(index.to_serve())
    assert Counter(served) == Counter(view for view in views if view.num_wanted_tokens)
    assert [view.has_claim for view in served] == sorted(
        (view.has_claim for view in served), reverse=True
    )
    with_claim = [tenants[view.request_id].priority for view in served if view.has_claim]
    assert with_claim == sorted(with_claim, reverse=True)
    for name in newest:
        own = [view for view in served if tenants[view.request_id].name == name]
        assert own == sorted(own, key=lambda v: POLICIES[policy].serving_key(v, v.has_claim))


def by_number(name: str) -> TenantShare:
    """Three tenants of different weights and priorities."""
    number = sum(map(ord, name)) % 3
    return TenantShare(f"tenant-{number}", weight=1.0 + number, priority=number // 2)


@pytest.mark.parametrize("num_host_slots", [0, 5])
@pytest.mark.parametrize("policy", ["srpf", "fcfs", "default"])
def test_3_sessions_of_all_tenants_end_and_blocks_come_back(
    policy: str, num_host_slots: int
) -> None:
    class Machine(SessionMachine):
        def make_driver(self) -> PlannerDriver:
            return PlannerDriver(
                policy=policy,
                preemption=a_preemption("cost", LinearCosts(1.0, 0.5, 1.5), block_size=4),
                num_host_slots=num_host_slots,
                starvation_guard_steps=50,
                tenant_of=by_number,
            )

    run_state_machine_as_test(Machine, settings=examples(15))


class Endless:
    """Tenants whose sealed sessions are followed by another one at once; memory is plenty."""

    def __init__(
        self, policy: str, tenants: dict[TenantShare, tuple[int, int]], num_tokens: int
    ) -> None:
        """`tenants` has the number of sessions, and the tokens of each."""
        self.table = SessionTable(POLICIES[policy], 10**9, num_lost_blocks=0)
        self.limits = StepLimits(num_tokens, 64, 10**9, block_size=16, num_open_tokens=num_tokens)
        self.work: Counter[str] = Counter()
        self._computed: dict[str, int] = {}
        self._of: dict[str, tuple[TenantShare, int]] = {}
        for share, (num_sessions, size) in tenants.items():
            for _ in range(num_sessions):
                self.open(share, size)

    def open(self, share: TenantShare, size: int) -> str:
        name = f"{share.name}-{self.table._num_arrivals}"
        self._of[name] = share, size
        self._computed[name] = 0
        self.table.open(name, revision=1, sealed=True, tenant=share)
        self.table.update(name, size, 0, 0)
        return name

    def refill(self) -> None:
        """Every tenant has more than a step computes."""
        for share, size in set(self._of.values()):
            left = sum(
                size - self._computed[name] for name, (of, _) in self._of.items() if of is share
            )
            for _ in range(-(-(2 * self.limits.num_tokens - left) // size)):
                self.open(share, size)

    def step(self) -> StepPlan:
        self.refill()
        self.table.begin_step()
        plan = self.table.plan(self.limits, NO_BLOCKS, BY_RANK)
        self.table.end_step(plan, 10**9)
        for name, num_tokens in plan.grants:
            share, size = self._of[name]
            self.work[share.name] += num_tokens
            self._computed[name] += num_tokens
            if self._computed[name] < size:
                self.table.update(name, size, self._computed[name], 0)
            else:
                self.table.close(name)
                del self._computed[name], self._of[name]
        return plan


@given(
    policies,
    st.tuples(st.integers(1, 3), st.integers(1, 60)),
    st.tuples(st.integers(1, 9), st.integers(1, 60)),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.integers(8, 64),
)
def test_4_work_follows_the_weights(
    policy: str, few: tuple[int, int], many: tuple[int, int], weight: float, num_tokens: int
) -> None:
    one, other = TenantShare("one", weight), TenantShare("other")
    arena = Endless(policy, {one: few, other: many}, num_tokens)
    for _ in range(60):
        arena.step()
    largest = max(few[1], many[1]) + num_tokens
    ahead = arena.work["one"] / weight - arena.work["other"]
    assert abs(ahead) <= largest * max(1, 1 / weight)


def test_4_a_higher_priority_is_served_first() -> None:
    low, high = TenantShare("low", weight=100), TenantShare("high", weight=1, priority=1)
    arena = Endless("srpf", {low: (5, 40), high: (1, 40)}, num_tokens=20)
    for _ in range(20):
        arena.step()
    assert arena.work == {"high": 400}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_4_a_session_that_lost_its_kv_earns_no_credit(policy: str) -> None:
    """It has work, but nothing new: its tenant is idle meanwhile."""
    greedy, idle = TenantShare("greedy"), TenantShare("idle")
    arena = Endless(policy, {greedy: (4, 40)}, num_tokens=20)
    arena.table.open("evicted", revision=1, sealed=False, tenant=idle)
    arena.table.update("evicted", 101, 100, 7)
    arena.table.note_eviction("evicted")
    arena.table.update("evicted", 101, 0, 0)
    for _ in range(100):
        arena.step()
    assert arena.work == {"greedy": 2000}
    arena.work.clear()
    arena.open(idle, 40)
    for _ in range(20):
        arena.step()
    assert abs(arena.work["greedy"] - arena.work["idle"]) <= 40 + 20


def num_calls(act: Callable[[], Any]) -> int:
    """How many functions are called, in Python and in C: a cost that no machine changes."""
    calls = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return calls


def calls_of_a_plan(num_tenants: int, num_sessions: int) -> int:
    tenants = {TenantShare(f"t{n}"): (num_sessions, 40) for n in range(num_tenants)}
    arena = Endless("srpf", tenants, num_tokens=400)
    arena.step()
    arena.table.begin_step()
    return num_calls(lambda: arena.table.plan(arena.limits, NO_BLOCKS, BY_RANK))


def test_5_a_plan_costs_what_it_chooses() -> None:
    few = calls_of_a_plan(num_tenants=20, num_sessions=2)
    assert calls_of_a_plan(num_tenants=20, num_sessions=200) <= few * 1.1
    assert calls_of_a_plan(num_tenants=400, num_sessions=2) <= few * 1.1
