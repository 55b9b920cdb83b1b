"""The sessions that are open at this router: admission, phases, outcomes."""

from __future__ import annotations

import asyncio
from collections import Counter

from router.metrics import Phase, RouterMetrics
from stream2llm.api.errors import OverloadedError, UnavailableError
from stream2llm.serving.clock import Clock


class OpenSessions:
    """Owns the places for sessions."""

    def __init__(self, max_open: int, metrics: RouterMetrics, clock: Clock) -> None:
        self._max_open = max_open
        self._metrics = metrics
        self._clock = clock
        self._open: set[SessionPlace] = set()
        self._is_draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    def admit(self) -> SessionPlace:
        """Returns a place for a session; raises when the router is full or draining."""
        if self._is_draining:
            raise UnavailableError("the router is draining", reason="DRAINING")
        if len(self._open) >= self._max_open:
            raise OverloadedError(
                f"{self._max_open} sessions are open, which is the limit (max_open_sessions)",
                reason="TOO_MANY_SESSIONS",
            )
        place = SessionPlace(self, self._metrics, self._clock)
        self._open.add(place)
        self._empty.clear()
        return place

    def by_phase(self) -> dict[str, int]:
        """Returns the number of sessions by phase; phases without sessions are left out."""
        return dict(Counter(str(place.phase) for place in self._open))

    def refuse_new(self) -> None:
        """Stops admission."""
        self._is_draining = True

    async def wait_empty(self, timeout_s: float) -> bool:
        """Waits for the last session to end; returns whether it did in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def left(self, place: SessionPlace) -> None:
        """For `SessionPlace` only."""
        self._open.discard(place)
        if not self._open:
            self._empty.set()


class SessionPlace:
    """One session's place; must be left exactly once."""

    def __init__(self, owner: OpenSessions, metrics: RouterMetrics, clock: Clock) -> None:
        self._owner = owner
        self._metrics = metrics
        self._clock = clock
        self._admitted_at_s = clock.monotonic_s()
        self.phase = Phase.QUEUED
        metrics.phase_changed(None, self.phase)

    def move(self, phase: Phase) -> None:
        """The session's phase has changed."""
        if phase is not self.phase:
            self._metrics.phase_changed(self.phase, phase)
            self.phase = phase

    def leave(self, outcome: str) -> None:
        """The session has ended."""
        self._metrics.phase_changed(self.phase, None)
        self._metrics.session_ended(outcome, self._clock.monotonic_s() - self._admitted_at_s)
        self._owner.left(self)
