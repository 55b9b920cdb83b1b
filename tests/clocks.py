"""Clocks for tests."""

from __future__ import annotations


class SteppedClock:
    """Goes on by `step_s` with each look, so that only the number of looks counts."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._now_s = 0.0

    def monotonic_s(self) -> float:
        self._now_s += self._step_s
        return self._now_s

    def wall_s(self) -> float:
        raise AssertionError("not asked for")
