"""When what happened to one session, by the router's clock."""

from __future__ import annotations

from stream2llm.api.events import Timings
from stream2llm.serving.clock import Clock


class Timeline:
    """Instants in seconds; each is noted once, where it happens."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._opened_at_s = clock.monotonic_s()
        self._sealed_at_s = self._opened_at_s
        self._first_token_at_s: float | None = None
        self._first_to_second_s: float | None = None
        self._last_step_at_s = self._opened_at_s

    def opened(self) -> None:
        """The open event is here."""
        self._opened_at_s = self._clock.monotonic_s()

    def sealed(self) -> None:
        """The seal event is here."""
        self._sealed_at_s = self._clock.monotonic_s()

    def first_token(self) -> None:
        """Prefill's token is here."""
        self._first_token_at_s = self._last_step_at_s = self._clock.monotonic_s()

    def decode_step(self) -> float:
        """Decode's tokens are here; returns the seconds since the tokens before."""
        now = self._clock.monotonic_s()
        since_last, self._last_step_at_s = now - self._last_step_at_s, now
        if self._first_to_second_s is None:
            self._first_to_second_s = since_last
        return since_last

    def timings(self) -> Timings:
        """For the end of a session that has its first token."""
        first = self._first_token_at_s
        assert first is not None, "an answer has a first token"
        return Timings(
            ttft_from_open_s=first - self._opened_at_s,
            ttft_from_seal_s=first - self._sealed_at_s,
            first_to_second_token_s=self._first_to_second_s,
            total_s=self._clock.monotonic_s() - self._opened_at_s,
        )
