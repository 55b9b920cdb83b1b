"""The life of a session: one table, and nothing else decides what is legal.

    NEW -open-> OPEN -seal-> SEALED -first_token-> TRANSFERRING -step-> DECODING
                 | append, update            |                        |  step
                 `-> OPEN                    `---- finish ------------+-> FINISHED
    every state that is not an end:  -fail-> FAILED   -cancel-> CANCELLED
    TRANSFERRING, DECODING  -resume-> SEALED, when what holds the answer's KV is lost

A session ends exactly once: the three ends accept no event. The router and the
client both keep one `Session`; an illegal event raises and changes nothing.
Knows neither tokens nor transports.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from stream2llm.api.errors import (
    EventOrderError,
    InternalError,
    InvalidRequestError,
    Stream2LLMError,
)


class State(StrEnum):
    """Where a session is in its life."""

    NEW = "new"  # nothing has come yet
    OPEN = "open"  # admitted; its context may grow and change
    SEALED = "sealed"  # its context is final; prefill works on the rest
    TRANSFERRING = "transferring"  # the first token is out, its KV on the way
    DECODING = "decoding"  # decode has given a token
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What can happen to a session."""

    OPEN = "open"
    APPEND = "append"
    UPDATE = "update"
    SEAL = "seal"
    # The client's half of the stream is closed.
    CLOSE = "close"
    FIRST_TOKEN = "first_token"
    STEP = "step"  # tokens from a decode worker
    RESUME = "resume"  # prompt and answer so far go to prefill, whose token continues it
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"


CLIENT_EVENTS = frozenset({Event.OPEN, Event.APPEND, Event.UPDATE, Event.SEAL, Event.CLOSE})
ENDS = frozenset({State.FINISHED, State.FAILED, State.CANCELLED})

_FORWARD: dict[tuple[State, Event], State] = {
    (State.NEW, Event.OPEN): State.OPEN,
    (State.OPEN, Event.APPEND): State.OPEN,
    (State.OPEN, Event.UPDATE): State.OPEN,
    (State.OPEN, Event.SEAL): State.SEALED,
    (State.SEALED, Event.CLOSE): State.SEALED,
    (State.TRANSFERRING, Event.CLOSE): State.TRANSFERRING,
    (State.DECODING, Event.CLOSE): State.DECODING,
    (State.SEALED, Event.FIRST_TOKEN): State.TRANSFERRING,
    (State.TRANSFERRING, Event.STEP): State.DECODING,
    (State.DECODING, Event.STEP): State.DECODING,
    (State.TRANSFERRING, Event.RESUME): State.SEALED,
    (State.DECODING, Event.RESUME): State.SEALED,
    # The first token may be the last one.
    (State.TRANSFERRING, Event.FINISH): State.FINISHED,
    (State.DECODING, Event.FINISH): State.FINISHED,
}

TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    _FORWARD
    | {(state, Event.FAIL): State.FAILED for state in State if state not in ENDS}
    | {(state, Event.CANCEL): State.CANCELLED for state in State if state not in ENDS}
)


def next_state(state: State, event: Event) -> State:
    """The state after `event`; raises when the table has no such transition."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise _error(state, event) from None


def _error(state: State, event: Event) -> Stream2LLMError:
    if event not in CLIENT_EVENTS:
        return InternalError(f"event {event} in state {state}")
    if event is Event.CLOSE:
        return EventOrderError(
            f"the request stream was closed without a seal (session is {state})",
            reason="CLOSED_WITHOUT_SEAL",
        )
    if state is State.NEW:
        return InvalidRequestError(
            f"the first event must be open, not {event} (session is {state})",
            reason="FIRST_EVENT_NOT_OPEN",
            field="event",
        )
    return EventOrderError(f"event {event} is not allowed: the session is {state}")


class Session:
    """The current state; `apply` is the only way to change it."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = State.NEW

    def __repr__(self) -> str:
        return f"Session({self._state})"

    @property
    def state(self) -> State:
        return self._state

    @property
    def has_ended(self) -> bool:
        return self._state in ENDS

    def apply(self, event: Event) -> State:
        """Moves on and returns the new state, or raises and stays."""
        self._state = next_state(self._state, event)
        return self._state
