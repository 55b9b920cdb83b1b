"""The time budget of a profile run, and its progress messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.system.clock import Clock

# Ticks within this time of the last message are dropped.
TICK_S = 2.0


class Progress:
    """Progress messages, each with the seconds that the whole run has left."""

    def __init__(self, say: Callable[[str], None], clock: Clock, ends_s: float) -> None:
        self._say = say
        self._clock = clock
        self._ends_s = ends_s
        self._reported_s = clock.monotonic_s()

    def report(self, line: str) -> None:
        """Prints a message now."""
        self._reported_s = self._clock.monotonic_s()
        self._say(f"[{max(self._ends_s - self._reported_s, 0.0):3.0f} s left] {line}")

    def tick(self, line: str) -> None:
        """Prints a message unless one was printed a moment ago."""
        if self._clock.monotonic_s() - self._reported_s >= TICK_S:
            self.report(line)


@dataclass(frozen=True, slots=True)
class Budget:
    """A deadline that is kept: what no longer fits is not begun."""

    clock: Clock
    ends_s: float
    progress: Progress

    @property
    def left_s(self) -> float:
        """Seconds until the end; negative after it."""
        return self.ends_s - self.clock.monotonic_s()

    def part(self, share: float) -> Budget:
        """Returns a budget of a share of what is left, from now on."""
        ends_s = self.clock.monotonic_s() + share * max(self.left_s, 0.0)
        return replace(self, ends_s=ends_s)

    def has(self, duration_s: float) -> bool:
        """Whether something that takes `duration_s` would end in time."""
        return self.left_s >= duration_s

    def too_short(self, what: str) -> InvalidRequestError:
        """Returns the error for a budget that is too short for `what`."""
        return InvalidRequestError(
            f"--minutes is too little here: {what}; give it more (at most 5), or measure with a"
            " smaller max_num_batched_tokens",
            reason="TOO_LITTLE_TIME",
            field="--minutes",
        )
