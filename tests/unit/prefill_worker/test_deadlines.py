"""Deadlines in the session table: when one is lost, and what that does to the order."""

from __future__ import annotations

import pytest

from prefill_worker.deadlines import Deadlines, start_by_ms
from prefill_worker.policy import POLICIES
from prefill_worker.session_state import SessionState
from prefill_worker.session_table import SessionTable
from tests.builders import BY_RANK, a_ledger, a_request, limits

MS_A_TOKEN = 2


def a_table(starvation_guard_steps: int = 1000) -> SessionTable:
    """Its costs are two milliseconds a token."""
    return SessionTable(
        POLICIES["srpf"],
        starvation_guard_steps,
        num_lost_blocks=8,
        compute_s=lambda start, stop: MS_A_TOKEN * (stop - start) / 1000,
    )


def sealed(table: SessionTable, request_id: str, known: int, deadline_ms: int = 0) -> None:
    slo_ms = 1000 if deadline_ms else 0
    table.open(request_id, revision=1, sealed=True, ttft_slo_ms=slo_ms, deadline_ms=deadline_ms)
    table.update(request_id, known, 0, 0)


def is_open(table: SessionTable, request_id: str, known: int, slo_ms: int = 0) -> SessionState:
    state = table.open(request_id, revision=1, sealed=False, ttft_slo_ms=slo_ms)
    table.update(request_id, known, 0, 0)
    return state


def order(table: SessionTable, now_ms: int) -> list[str]:
    """The sessions in the order in which steps at this time serve them."""
    table.begin_step(now_ms)
    return [view.request_id for view in table._index.to_serve()]


def test_a_session_is_late_once_its_work_does_not_fit_any_more() -> None:
    table = a_table()
    sealed(table, "a", known=50, deadline_ms=300)
    assert (table.view("a").remaining_ms, table.view("a").is_late) == (100, False)
    table.begin_step(200)
    assert not table.view("a").is_late
    table.begin_step(201)
    assert table.view("a").is_late


def test_what_is_computed_moves_the_latest_moment() -> None:
    table = a_table()
    sealed(table, "a", known=50, deadline_ms=300)
    table.update("a", 50, 40, 2)
    table.begin_step(280)
    assert not table.view("a").is_late
    table.begin_step(281)
    assert table.view("a").is_late


def test_a_late_session_that_loses_its_kv_or_gains_it_is_judged_anew() -> None:
    """A prefix cache hit can bring a deadline back."""
    table = a_table()
    sealed(table, "a", known=50, deadline_ms=300)
    table.begin_step(250)
    assert table.view("a").is_late
    table.update("a", 50, 49, 2)
    assert not table.view("a").is_late
    table.begin_step(301)
    assert table.view("a").is_late


def test_what_cannot_be_met_does_not_push_out_what_can() -> None:
    table = a_table()
    sealed(table, "lost", known=10, deadline_ms=100)
    sealed(table, "in time", known=200, deadline_ms=1000)
    sealed(table, "whenever", known=300)
    is_open(table, "due", known=100, slo_ms=1000)
    is_open(table, "idle", known=5)
    assert order(table, 0) == ["lost", "in time", "whenever", "due", "idle"]
    assert order(table, 90) == ["in time", "whenever", "due", "lost", "idle"]


def test_without_deadlines_the_time_changes_nothing() -> None:
    table = a_table()
    sealed(table, "long", known=300)
    sealed(table, "short", known=10)
    is_open(table, "open", known=100)
    assert order(table, 0) == order(table, 10**9) == ["short", "long", "open"]
    assert table.view("long").remaining_ms == 0


def test_open_sessions_with_a_deadline_are_prefilled_least_left_first() -> None:
    table = a_table()
    is_open(table, "large", known=400, slo_ms=100)
    is_open(table, "small", known=40, slo_ms=1000)
    is_open(table, "without", known=20)
    assert order(table, 0) == ["small", "large", "without"]


def test_an_open_session_is_overtaken_only_by_what_opens_soon_enough() -> None:
    """Ten tokens of others' work for each of its own."""
    for work, first in ((3590, "small"), (3610, "large")):
        table = a_table()
        is_open(table, "large", known=401, slo_ms=100)
        table._work = work
        is_open(table, "small", known=41, slo_ms=100)
        assert order(table, 0)[0] == first


def test_the_seal_brings_the_deadline() -> None:
    table = a_table()
    state = is_open(table, "a", known=50, slo_ms=100)
    table.begin_step(10**6)
    assert not table.view("a").is_late
    table.note_event("a", 50)
    table.seal(state, 60, deadline_ms=10**6 + 100)
    table.update("a", 60, 0, 0)
    assert table.view("a").is_late


def test_a_lost_deadline_does_not_starve_its_session() -> None:
    """The starvation guard counts for late ones, too."""
    table = a_table(starvation_guard_steps=3)
    sealed(table, "late", known=64, deadline_ms=1)
    sealed(table, "other", known=10_000, deadline_ms=10**6)
    served = []
    for now_ms in range(2, 12):
        table.begin_step(now_ms)
        plan = table.plan(limits(tokens=32), a_ledger(), BY_RANK)
        served += [grant.request_id for grant in plan.grants]
        table.end_step(plan, num_free_blocks=1000)
    assert "late" in served


def test_a_session_that_ends_is_forgotten() -> None:
    table = a_table()
    sealed(table, "a", known=50, deadline_ms=300)
    table.close("a")
    table.begin_step(10**6)
    assert table.num_sessions == 0


def test_the_deadlines_yield_each_session_once_in_order() -> None:
    deadlines = Deadlines()
    for request_id, moment_ms in (("a", 30), ("b", 10), ("c", 20), ("b", 25), ("d", 5)):
        deadlines.put(request_id, moment_ms)
    deadlines.put("d", None)
    assert list(deadlines.take_lost(30)) == ["c", "b"]
    assert list(deadlines.take_lost(31)) == ["a"]
    assert len(deadlines) == 0


@pytest.mark.parametrize(
    ("sealed", "is_late", "moment_ms"),
    [(True, False, 60), (True, True, None), (False, False, None)],
)
def test_only_a_sealed_session_in_time_has_a_latest_moment(
    sealed: bool, is_late: bool, moment_ms: int | None
) -> None:
    view = a_request(sealed=sealed)._replace(deadline_ms=100, remaining_ms=40, is_late=is_late)
    assert start_by_ms(view) == moment_ms
    assert start_by_ms(view._replace(deadline_ms=0)) is None
