"""Invariants of a session's life.

1. It ends exactly once: an end accepts no event.
2. An illegal event raises and changes nothing.
3. Every state can be reached, and from every state an end.
4. The answer comes after the seal: no token while the context may change.
5. Only client events blame the client.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm.api.errors import (
    EventOrderError,
    InternalError,
    InvalidRequestError,
    Stream2LLMError,
)
from stream2llm.api.session import CLIENT_EVENTS, ENDS, TRANSITIONS, Event, Session, State

EVENTS = st.lists(st.sampled_from(Event), max_size=40)


def live(events: list[Event]) -> list[tuple[Event, State | None, State]]:
    """Applies all; (event, the new state or None when refused, the state after)."""
    session = Session()
    history: list[tuple[Event, State | None, State]] = []
    for event in events:
        before = session.state
        try:
            history.append((event, session.apply(event), session.state))
        except Stream2LLMError:
            assert session.state is before
            history.append((event, None, session.state))
    return history


@given(EVENTS)
def test_it_ends_at_most_once_and_for_good(events: list[Event]) -> None:
    states = [after for _, _, after in live(events)]
    ends = [index for index, state in enumerate(states) if state in ENDS]
    if ends:
        assert set(states[ends[0] :]) == {states[ends[0]]}
        assert [taken for _, taken, _ in live(events)[ends[0] + 1 :]] == [None] * (
            len(states) - ends[0] - 1
        )


@given(EVENTS)
def test_what_is_legal_is_what_the_table_says(events: list[Event]) -> None:
    state = State.NEW
    for event, taken, after in live(events):
        assert taken is TRANSITIONS.get((state, event))
        state = after


@given(EVENTS)
def test_no_token_comes_before_the_seal(events: list[Event]) -> None:
    taken = [event for event, state, _ in live(events) if state is not None]
    for event in (Event.FIRST_TOKEN, Event.STEP, Event.FINISH):
        if event in taken:
            assert Event.SEAL in taken[: taken.index(event)]
    if Event.SEAL in taken:
        behind = taken[taken.index(Event.SEAL) + 1 :]
        assert not {Event.OPEN, Event.APPEND, Event.UPDATE, Event.SEAL} & set(behind)


def test_every_state_can_be_reached_and_left_for_an_end() -> None:
    reached = {State.NEW} | set(TRANSITIONS.values())
    assert reached == set(State)
    for state in set(State) - ENDS:
        assert TRANSITIONS[state, Event.FAIL] is State.FAILED
        assert TRANSITIONS[state, Event.CANCEL] is State.CANCELLED
    assert not any(state in ENDS for state, _ in TRANSITIONS)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_a_refusal_names_state_and_event(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        return
    session = Session()
    session._state = state
    with pytest.raises(Stream2LLMError) as raised:
        session.apply(event)
    error = raised.value
    assert state in error.message
    assert ("closed" if event is Event.CLOSE else event.value) in error.message
    if event not in CLIENT_EVENTS:
        assert isinstance(error, InternalError)
    elif state is State.NEW and event is not Event.CLOSE:
        assert isinstance(error, InvalidRequestError)
    else:
        assert isinstance(error, EventOrderError)
