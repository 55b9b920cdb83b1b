"""Decides whether a session whose router failed is opened at another one. Pure.

    not admitted yet     each router is tried once; then the last error stands
    lost after that      opened again, `max_restarts` times in all
    not taken again      the next router, in rounds with growing pauses, for `max_wait_s`

`placed_session.py` carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.api import arguments
from stream2llm.api.backoff import pause_s
from stream2llm.api.errors import (
    IdleTimeoutError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
    extended,
    times,
)


@dataclass(frozen=True, slots=True)
class SessionRecovery:
    """How far a session goes on when its router is lost."""

    max_restarts: int = 3
    """Most times that one session is opened again; with the next loss it fails. 0: never."""
    max_wait_s: float = 60.0
    """Most seconds, at each loss, until a router has taken the session."""
    max_kept_bytes: int = 64 * 1024 * 1024
    """Most bytes of context that the client keeps to send it again. A session that sends more over
    its life is not opened again."""


NO_RECOVERY = SessionRecovery(max_restarts=0, max_kept_bytes=0)


def recovery_of(recover: object) -> SessionRecovery:
    """The limits that the argument of `session` stands for."""
    if isinstance(recover, bool):
        return SessionRecovery() if recover else NO_RECOVERY
    if not isinstance(recover, SessionRecovery):
        raise arguments.refused("recover", recover, "True, False or a SessionRecovery")
    return recover


# gRPC's statuses for a connection that broke, beside UNAVAILABLE; and a router's reason when the
# opening has not reached it in time, though this client sends it first of all.
_BROKEN = frozenset({"CANCELLED", "UNKNOWN", "NOT_OPENED"})


def is_loss(error: Stream2LLMError) -> bool:
    """Whether another router may go on: this one, or what it needs, is lost or ends."""
    if isinstance(error, UnavailableError):
        return bool(error.retry_after_s)
    return error.reason in _BROKEN


@dataclass(frozen=True, slots=True)
class Again:
    """The session is opened at the next router, after a pause."""

    pause_s: float
    # Whether it was at a router, and begins there from nothing.
    is_restart: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The session fails."""

    error: Stream2LLMError


class Recovery:
    """The failures of one session."""

    def __init__(self, options: SessionRecovery, num_routers: int) -> None:
        self._options = options
        # Those that there are now.
        self.num_routers = num_routers
        self.num_restarts = 0
        # Routers tried since the opening, or since the last loss.
        self._num_tried = 0
        # None before the first loss.
        self._loss: Stream2LLMError | None = None
        self._lost_at_s = 0.0

    def refused(self, error: Stream2LLMError, now_s: float) -> Again | GiveUp:
        """A router did not take the session."""
        self._num_tried += 1
        if self._loss is not None:
            return self._not_taken_again(error, now_s)
        is_last = self._num_tried >= self.num_routers
        return GiveUp(error) if is_last or not is_loss(error) else Again(0.0)

    def lost(self, error: Stream2LLMError, now_s: float, *, is_kept: bool) -> Again | GiveUp:
        """The router that had the session failed; `is_kept`: all of the context is still here."""
        options = self._options
        if not is_loss(error) or options.max_restarts == 0:
            return GiveUp(error)
        if not is_kept:
            return self._give_up(
                error, f"its context has more than {options.max_kept_bytes} bytes (max_kept_bytes)"
            )
        if self.num_restarts >= options.max_restarts:
            return self._give_up(error, f"the limit is {options.max_restarts} (max_restarts)")
        self.num_restarts += 1
        self._num_tried = 0
        self._loss, self._lost_at_s = error, now_s
        return Again(pause_s(self.num_restarts), is_restart=True)

    def _not_taken_again(self, error: Stream2LLMError, now_s: float) -> Again | GiveUp:
        """Overload passes, as routers take over the sessions of a lost one together."""
        assert self._loss is not None, "there was a loss"
        if isinstance(error, IdleTimeoutError) and not is_loss(error):
            return GiveUp(error)  # the caller's own limit
        asked_s = error.retry_after_s if isinstance(error, OverloadedError) else None
        if not is_loss(error) and not asked_s:
            return self._give_up(error, "the next router refused it")
        wait_s = max(pause_s(1 + self._num_tried // self.num_routers), asked_s or 0.0)
        limit_s = self._options.max_wait_s
        if now_s + wait_s - self._lost_at_s <= limit_s:
            return Again(wait_s)
        self.num_restarts -= 1
        return self._give_up(
            self._loss, f"no router took it within {limit_s:g} s (max_wait_s): {error.message}"
        )

    def _give_up(self, error: Stream2LLMError, why: str) -> GiveUp:
        more = f"the client opened the session again {times(self.num_restarts)}, and no more: {why}"
        return GiveUp(extended(error, more, error.retry_after_s))
