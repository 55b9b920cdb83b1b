"""The session table of live sessions: places, waits, who has waited too long, guarded sessions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prefill_worker.policy import POLICIES
from prefill_worker.session_state import SessionState
from prefill_worker.session_table import SessionTable
from prefill_worker.starvation_guard import StarvationGuard
from prefill_worker.types import StepPlan
from stream2llm.api.tenant import TenantShare
from tests.builders import BY_RANK, LinearCosts, a_ledger, a_preemption, limits


def a_table(policy: str = "fcfs", starvation_guard_steps: int = 3) -> SessionTable:
    return SessionTable(POLICIES[policy], starvation_guard_steps, num_lost_blocks=8)


@pytest.fixture
def table() -> SessionTable:
    return a_table()


def opened(
    table: SessionTable, request_id: str, known: int, *, sealed: bool = False
) -> SessionState:
    state = table.open(request_id, revision=1, sealed=sealed)
    table.update(request_id, known, 0, 0)
    return state


def served(plan: StepPlan) -> list[str]:
    return [grant.request_id for grant in plan.grants]


def step(table: SessionTable, tokens: int = 64) -> list[str]:
    """Runs a step without computing anything; returns the sessions it would serve."""
    table.begin_step()
    plan = table.plan(limits(tokens=tokens), a_ledger(), BY_RANK)
    table.end_step(plan, num_free_blocks=1000)
    return served(plan)


def a_table_with_a_guarded_session() -> tuple[SessionTable, SessionState]:
    """One session, "open", that was promised all of its 64 tokens."""
    table = a_table()
    state = opened(table, "open", known=65)
    for _ in range(4):
        step(table)
    return table, state


def test_a_step_for_open_sessions_is_as_long_as_the_work_that_waits_deserves() -> None:
    table = a_table("srpf")
    opened(table, "open", known=10_001)
    preemption = a_preemption(costs=LinearCosts(token_s=0.001))

    def num_granted(target_s: float | None, **changes: int) -> int:
        bounds = limits(tokens=4096, **changes)._replace(open_step_s=target_s)
        return sum(g.num_tokens for g in table.plan(bounds, a_ledger(), preemption).grants)

    assert num_granted(None) == 4096
    assert num_granted(0.9) == 900
    assert num_granted(9.0) == 2048
    assert num_granted(9.0, open_tokens=7) == 2048
    table.update("open", 4001, 0, 0)
    assert num_granted(1.8) == 1000  # a quarter
    opened(table, "another", known=2)
    opened(table, "third", known=2)
    assert num_granted(1.8) == 1800
    opened(table, "sealed", known=4096, sealed=True)
    assert num_granted(1.8) == 4096


def test_a_step_for_open_sessions_has_no_more_than_one_that_tenants_share() -> None:
    table = a_table("srpf")
    for name in ("a", "b"):
        table.open(name, revision=1, sealed=False, tenant=TenantShare(name, 1.0, 0))
        table.update(name, 5001, 0, 0)
    bounds = limits(tokens=4096)._replace(num_shared_tokens=512, open_step_s=100.0)
    plan = table.plan(bounds, a_ledger(), BY_RANK)
    assert sum(grant.num_tokens for grant in plan.grants) == 512


def test_a_session_that_waits_too_long_goes_first(table: SessionTable) -> None:
    opened(table, "open", known=65)
    opened(table, "sealed", known=64, sealed=True)
    # Every fourth step is the guarded ones' turn.
    turns = [["sealed"]] * 3 + [["open"]]
    assert [step(table) for _ in range(8)] == turns * 2
    assert table.num_guarded_in_all == 2


def test_a_session_is_guarded_until_the_promise_is_kept() -> None:
    table, state = a_table_with_a_guarded_session()
    assert (state.guard_number, state.promised_tokens) == (1, 64)
    table.update("open", 200, 63, 2)  # an append does not add to the promise
    assert state.guard_number == 1
    table.update("open", 200, 64, 2)
    assert state.guard_number == 0


def test_an_update_that_throws_kv_away_ends_the_guard_and_begins_a_new_wait() -> None:
    table, state = a_table_with_a_guarded_session()
    table.update("open", 65, 20, 1)
    table.note_event("open", 20)
    assert state.guard_number == 1  # nothing that was computed is lost
    table.note_event("open", 10)
    table.update("open", 65, 10, 1)
    assert state.guard_number == 0
    opened(table, "sealed", known=64, sealed=True)
    assert [step(table) for _ in range(4)] == [["sealed"]] * 3 + [["open", "sealed"]]


def test_a_guard_ends_when_an_update_leaves_nothing_new() -> None:
    table, state = a_table_with_a_guarded_session()
    table.update("open", 65, 30, 1)
    assert state.guard_number == 1
    table.note_event("open", 30)  # the rest was not computed yet
    table.update("open", 31, 30, 1)
    assert state.guard_number == 0


def test_the_seal_adds_to_the_promise() -> None:
    table, state = a_table_with_a_guarded_session()
    table.seal(state, 80)
    table.update("open", 80, 64, 2)
    assert (state.guard_number, state.promised_tokens) == (1, 80)


def test_an_eviction_does_not_end_a_guard() -> None:
    table, state = a_table_with_a_guarded_session()
    table.update("open", 65, 40, 2)
    table.note_eviction("open")
    table.update("open", 65, 0, 0)
    assert (state.guard_number, state.lost_until) == (1, 40)
    assert table.view("open").has_claim


def test_idle_sessions_do_not_wait(table: SessionTable) -> None:
    state = opened(table, "idle", known=10)
    table.update("idle", 10, 9, 1)
    for _ in range(5):
        assert step(table) == []
    assert state.guard_number == 0
    assert (table.num_sessions, table.num_with_work) == (1, 0)


def test_a_session_that_would_only_restore_its_kv_does_not_wait(table: SessionTable) -> None:
    state = opened(table, "open", known=65)
    table.update("open", 65, 64, 2)
    table.note_eviction("open")
    table.update("open", 65, 0, 0)
    assert not table.view("open").has_claim
    for _ in range(5):
        assert step(table) == ["open"]
    assert state.guard_number == 0


def test_steps_that_compute_nothing_are_no_wait(table: SessionTable) -> None:
    state = opened(table, "open", known=65)
    for _ in range(9):
        table.begin_step()
        table.end_step(table.plan(limits(free_blocks=0), a_ledger(), BY_RANK), num_free_blocks=0)
    assert state.guard_number == 0


def test_no_step_is_needed_while_none_could_help_anybody(table: SessionTable) -> None:
    opened(table, "open", known=65)
    assert table.num_to_step_for(num_free_blocks=0) == 1
    table.begin_step()
    table.end_step(table.plan(limits(free_blocks=0), a_ledger(), BY_RANK), num_free_blocks=0)
    assert table.num_to_step_for(num_free_blocks=0) == 0
    assert table.num_to_step_for(num_free_blocks=1) == 1
    table.update("open", 66, 0, 0)
    assert table.num_to_step_for(num_free_blocks=0) == 1


def test_a_closed_session_is_nowhere(table: SessionTable) -> None:
    opened(table, "a", known=10)
    table.close("a")
    assert step(table) == []
    assert (table.num_sessions, table.num_with_work) == (0, 0)


def test_a_session_that_failed_while_it_began_is_nowhere_either(table: SessionTable) -> None:
    """The scheduler ends it before the table knows how long it is."""
    table.open("failed", revision=1, sealed=True, ttft_slo_ms=100)
    opened(table, "other", 64)
    table.close("failed")
    assert (table.num_sessions, table.num_with_work) == (1, 1)
    assert step(table) == ["other"]


def test_switching_the_policy_keeps_sessions_waits_and_guards(table: SessionTable) -> None:
    opened(table, "early", known=65)
    late = opened(table, "late", known=65)
    table.update("late", 65, 32, 1)
    assert step(table) == ["early"]
    table.set_policy(POLICIES["mcps"])
    assert step(table) == ["late", "early"]
    step(table)
    step(table)
    assert late.guard_number == 2
    assert (table.num_sessions, table.num_with_work) == (2, 2)


def test_hits_of_those_behind_sessions_whose_kv_comes_back_are_taken(table: SessionTable) -> None:
    for name in ("a", "b"):
        table.open(name, revision=1, sealed=True)
        table.update(name, 64, 0, 1, is_loading=True)
    opened(table, "c", 64, sealed=True)
    ledger = replace(a_ledger(), hits=frozenset("abc"))
    assert table.hits_in_turn(limits(requests=1), ledger) == ["c"]


def test_an_event_is_dated_by_the_tokens_that_were_granted_before(table: SessionTable) -> None:
    opened(table, "a", 65)
    assert step(table) == ["a"]
    later = opened(table, "b", 65)
    assert (table.view("a").last_event_work, table.view("b").last_event_work) == (0, 64)
    step(table, tokens=10)
    table.note_event("b", 65)
    table.update("b", 70, 0, 0)
    assert later.last_event_work == table.view("b").last_event_work == 74


@pytest.mark.parametrize(
    ("events", "overdue"),
    [
        # It ends when the session is guarded, and once only.
        ([("waits", "a", 1)], {3: [], 4: ["a"], 9: []}),
        # It goes on however often it is noted.
        ([("waits", "a", 1), ("waits", "a", 3)], {4: ["a"]}),
        # One that ended begins anew.
        ([("waits", "a", 1), ("ends", "a"), ("waits", "a", 3)], {4: [], 6: ["a"]}),
        # The longest comes first.
        ([("waits", "b", 1), ("waits", "a", 2)], {5: ["b", "a"]}),
    ],
)
def test_who_has_waited_too_long(
    events: list[tuple[Any, ...]], overdue: dict[int, list[str]]
) -> None:
    guard = StarvationGuard(limit_steps=3)
    for method, *args in events:
        getattr(guard, method)(*args)
    assert {step: guard.take_overdue(step) for step in overdue} == overdue
