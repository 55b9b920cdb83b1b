"""The book of live sessions: places, waits and promotions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefill_worker.book import SessionBook
from prefill_worker.policy import POLICIES
from prefill_worker.session_state import SessionState
from prefill_worker.types import StepPlan
from tests.builders import BY_RANK, a_ledger, limits

pytestmark = pytest.mark.unit


def a_book(policy: str = "fcfs", patience_steps: int = 3) -> SessionBook:
    return SessionBook(POLICIES[policy], patience_steps, num_lost_blocks=8)


def opened(book: SessionBook, request_id: str, known: int, *, sealed: bool = False) -> SessionState:
    state = book.open(request_id, revision=1, sealed=sealed)
    book.update(request_id, known, 0, 0)
    return state


def served(plan: StepPlan) -> list[str]:
    return [grant.request_id for grant in plan.grants]


def step(book: SessionBook, tokens: int = 64) -> list[str]:
    """A step in which nobody computes anything; who would."""
    book.begin_step()
    plan = book.plan(limits(tokens=tokens), a_ledger(), BY_RANK)
    book.end_step(plan, num_free_blocks=1000)
    return served(plan)


def a_book_with_a_promotion() -> tuple[SessionBook, SessionState]:
    """One session, "open", that was promised all of its 64 tokens."""
    book = a_book()
    state = opened(book, "open", known=65)
    for _ in range(4):
        step(book)
    return book, state


def test_a_session_that_waits_too_long_goes_first() -> None:
    book = a_book()
    opened(book, "open", known=65)
    opened(book, "sealed", known=64, sealed=True)
    # Every fourth step is the promoted ones' turn.
    turns = [["sealed"]] * 3 + [["open"]]
    assert [step(book) for _ in range(8)] == turns * 2
    assert book.num_promotions == 2


def test_a_promotion_ends_when_the_promise_is_kept() -> None:
    book, state = a_book_with_a_promotion()
    assert (state.promotion, state.promised_tokens) == (1, 64)
    book.update("open", 200, 63, 2)  # an append does not add to the promise
    assert state.promotion == 1
    book.update("open", 200, 64, 2)
    assert state.promotion == 0


def test_an_update_that_throws_kv_away_ends_the_promotion_and_begins_a_new_wait() -> None:
    book, state = a_book_with_a_promotion()
    book.update("open", 65, 20, 1)
    book.note_event("open", 20)
    assert state.promotion == 1  # nothing that was computed is lost
    book.note_event("open", 10)
    book.update("open", 65, 10, 1)
    assert state.promotion == 0
    opened(book, "sealed", known=64, sealed=True)
    assert [step(book) for _ in range(4)] == [["sealed"]] * 3 + [["open", "sealed"]]


def test_a_promotion_ends_when_an_update_leaves_nothing_new() -> None:
    book, state = a_book_with_a_promotion()
    book.update("open", 65, 30, 1)
    assert state.promotion == 1
    book.note_event("open", 30)  # the rest was not computed yet
    book.update("open", 31, 30, 1)
    assert state.promotion == 0


def test_the_seal_adds_to_the_promise() -> None:
    book, state = a_book_with_a_promotion()
    book.seal(state, 80)
    book.update("open", 80, 64, 2)
    assert (state.promotion, state.promised_tokens) == (1, 80)


def test_an_eviction_does_not_end_a_promotion() -> None:
    book, state = a_book_with_a_promotion()
    book.update("open", 65, 40, 2)
    book.note_eviction("open")
    book.update("open", 65, 0, 0)
    assert (state.promotion, state.lost_until) == (1, 40)
    assert book.view("open").has_claim


def test_idle_sessions_do_not_wait() -> None:
    book = a_book()
    state = opened(book, "idle", known=10)
    book.update("idle", 10, 9, 1)
    for _ in range(5):
        assert step(book) == []
    assert state.promotion == 0
    assert (book.num_sessions, book.num_with_work) == (1, 0)


def test_a_session_that_would_only_restore_its_kv_does_not_wait() -> None:
    book = a_book()
    state = opened(book, "open", known=65)
    book.update("open", 65, 64, 2)
    book.note_eviction("open")
    book.update("open", 65, 0, 0)
    assert not book.view("open").has_claim
    for _ in range(5):
        assert step(book) == ["open"]
    assert state.promotion == 0


def test_steps_that_compute_nothing_are_no_wait() -> None:
    book = a_book()
    state = opened(book, "open", known=65)
    for _ in range(9):
        book.begin_step()
        book.end_step(book.plan(limits(free_blocks=0), a_ledger(), BY_RANK), num_free_blocks=0)
    assert state.promotion == 0


def test_no_step_is_needed_while_none_could_help_anybody() -> None:
    book = a_book()
    opened(book, "open", known=65)
    assert book.num_to_step_for(num_free_blocks=0) == 1
    book.begin_step()
    book.end_step(book.plan(limits(free_blocks=0), a_ledger(), BY_RANK), num_free_blocks=0)
    assert book.num_to_step_for(num_free_blocks=0) == 0
    assert book.num_to_step_for(num_free_blocks=1) == 1
    book.update("open", 66, 0, 0)
    assert book.num_to_step_for(num_free_blocks=0) == 1


def test_a_closed_session_is_nowhere() -> None:
    book = a_book()
    opened(book, "a", known=10)
    book.close("a")
    assert step(book) == []
    assert (book.num_sessions, book.num_with_work) == (0, 0)


def test_switching_the_policy_keeps_sessions_waits_and_promotions() -> None:
    book = a_book()
    opened(book, "early", known=65)
    late = opened(book, "late", known=65)
    book.update("late", 65, 32, 1)
    assert step(book) == ["early"]
    book.set_policy(POLICIES["mcps"])
    assert step(book) == ["late", "early"]
    step(book)
    step(book)
    assert late.promotion == 2
    assert (book.num_sessions, book.num_with_work) == (2, 2)


def test_hits_of_those_behind_sessions_whose_kv_comes_back_are_taken() -> None:
    book = a_book()
    for name in ("a", "b"):
        book.open(name, revision=1, sealed=True)
        book.update(name, 64, 0, 1, is_loading=True)
    opened(book, "c", 64, sealed=True)
    ledger = replace(a_ledger(), hits=frozenset("abc"))
    assert book.hits_in_turn(limits(requests=1), ledger) == ["c"]


def test_an_event_is_dated_by_the_tokens_that_were_granted_before() -> None:
    book = a_book()
    opened(book, "a", 65)
    assert step(book) == ["a"]
    later = opened(book, "b", 65)
    assert (book.view("a").last_event_work, book.view("b").last_event_work) == (0, 64)
    step(book, tokens=10)
    book.note_event("b", 65)
    book.update("b", 70, 0, 0)
    assert later.last_event_work == book.view("b").last_event_work == 74
