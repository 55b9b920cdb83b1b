"""What the scheduler counts of a session."""

from __future__ import annotations

import pytest

from prefill_worker.session_state import ContextEvent, LostBlocks, SessionState
from stream2llm.api.tenant import TenantShare


def a_state(**changes: int) -> SessionState:
    state = SessionState(1, 1, revision=1, sealed=False, lost_blocks=LostBlocks(8))
    for name, value in changes.items():
        setattr(state, name, value)
    return state


def test_an_event_survives_the_wire() -> None:
    tenant = TenantShare("acme", weight=2.5, priority=-1)
    event = ContextEvent(revision=3, keep_tokens=7, seal=True, begins=False, tenant=tenant)
    assert ContextEvent.from_wire(event.to_wire()) == event


@pytest.mark.parametrize(("begin", "num_recomputed"), [(64, 36), (128, 0)])
def test_tokens_below_what_was_lost_count_as_recomputed(begin: int, num_recomputed: int) -> None:
    state = a_state(lost_until=100)
    state.record_computed(begin, 64)
    assert (state.computed, state.recomputed) == (64, num_recomputed)


def test_a_new_revision_is_told_at_once() -> None:
    assert a_state().is_worth_reporting(256, has_work=True)


def test_a_little_progress_is_not_told_while_more_comes() -> None:
    state = a_state(computed=10, reported_revision=1)
    assert not state.is_worth_reporting(256, has_work=True)
    assert state.is_worth_reporting(256, has_work=False)


def test_what_was_told_is_not_told_again() -> None:
    state = a_state(computed=10)
    state.mark_reported()
    assert not state.is_worth_reporting(1, has_work=False)


def test_a_delay_is_told_when_it_begins_and_when_it_ends() -> None:
    state = a_state()
    state.mark_reported()
    state.delay = "kv_memory"
    assert state.is_worth_reporting(256, has_work=True)
    state.mark_reported()
    assert not state.is_worth_reporting(256, has_work=True)
    state.delay = ""
    assert state.is_worth_reporting(256, has_work=True)


def test_only_the_newest_lost_blocks_are_remembered() -> None:
    lost = LostBlocks(2)
    lost.add([b"1", b"2"])
    lost.add([b"1", b"3"])
    assert lost.count([b"1", b"2", b"3"]) == 2
    assert lost.count([b"2"]) == 0
