"""Time as a parameter. ruff forbids `time` elsewhere, but where vLLM's own clock is needed.

`monotonic_s` is for durations and deadlines, `wall_s` for timestamps. A deadline is
an absolute `monotonic_s` instant, set once at the edge.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The parameter of code that needs the time."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary instant; never goes back."""

    def wall_s(self) -> float:
        """Seconds since the Unix epoch; may jump."""


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


class ManualClock:
    """Advances only when a test calls `advance`."""

    def __init__(self, monotonic_s: float = 0.0, wall_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._wall_s = wall_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def wall_s(self) -> float:
        return self._wall_s

    def advance(self, duration_s: float) -> None:
        """Advances both clocks."""
        if duration_s < 0:
            raise ValueError(f"time does not go back: {duration_s}")
        self._monotonic_s += duration_s
        self._wall_s += duration_s
