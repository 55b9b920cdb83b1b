"""Times of a session's events, by the router's clock."""

from __future__ import annotations

from router.session_spans import Instants
from stream2llm.api.events import Timings
from stream2llm.serving.system.clock import Clock


class Timeline:
    """Instants in seconds; each is noted once, when it occurs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._opened_at_s = clock.monotonic_s()
        self._sealed_at_s: float | None = None
        self._seal_sent_at_s: float | None = None
        self._first_token_at_s: float | None = None
        self._first_to_second_s: float | None = None
        self._last_step_at_s = self._opened_at_s
        self._lost_at_s: float | None = None

    def of_answer(self) -> Timeline:
        """Returns the times of another answer to the session's prompt."""
        other = Timeline(self._clock)
        other._opened_at_s, other._sealed_at_s = self._opened_at_s, self._sealed_at_s
        return other

    def opened(self) -> None:
        """The open event has arrived."""
        self._opened_at_s = self._clock.monotonic_s()

    def sealed(self) -> None:
        """The seal event has arrived."""
        self._sealed_at_s = self._clock.monotonic_s()

    @property
    def since_seal_s(self) -> float:
        """Seconds since the seal event arrived; 0 before it."""
        sealed_at_s = self._sealed_at_s
        return 0.0 if sealed_at_s is None else self._clock.monotonic_s() - sealed_at_s

    def seal_sent(self) -> None:
        """The seal has been sent to prefill."""
        self._seal_sent_at_s = self._clock.monotonic_s()

    def first_token(self) -> None:
        """Prefill's token has arrived."""
        self._first_token_at_s = self._last_step_at_s = self._clock.monotonic_s()

    def decode_step(self) -> float:
        """Decode's tokens have arrived; returns the seconds since the previous tokens."""
        now = self._clock.monotonic_s()
        since_last, self._last_step_at_s = now - self._last_step_at_s, now
        if self._first_to_second_s is None:
            self._first_to_second_s = since_last
        return since_last

    def lost(self) -> None:
        """The session has lost a worker."""
        if self._lost_at_s is None:
            self._lost_at_s = self._clock.monotonic_s()

    def recovered(self) -> float | None:
        """A token has arrived; returns the seconds since the loss before it, if there was one."""
        lost_at_s, self._lost_at_s = self._lost_at_s, None
        return None if lost_at_s is None else self._clock.monotonic_s() - lost_at_s

    @property
    def since_open_s(self) -> float:
        """Seconds since the open event arrived."""
        return self._clock.monotonic_s() - self._opened_at_s

    def instants(self) -> Instants:
        """Returns what has been noted so far."""
        first, second = self._first_token_at_s, None
        if first is not None and self._first_to_second_s is not None:
            second = first + self._first_to_second_s
        return Instants(self._opened_at_s, self._sealed_at_s, self._seal_sent_at_s, first, second)

    def timings(self) -> Timings:
        """Returns the timings of a session that has its first token."""
        first, sealed = self._first_token_at_s, self._sealed_at_s
        assert first is not None, "an answer has a first token"
        assert sealed is not None, "an answer has a seal"
        return Timings(
            ttft_from_open_s=first - self._opened_at_s,
            ttft_from_seal_s=first - sealed,
            first_to_second_token_s=self._first_to_second_s,
            total_s=self._clock.monotonic_s() - self._opened_at_s,
        )
