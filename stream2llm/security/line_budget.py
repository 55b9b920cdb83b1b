"""Bounds the log lines of refusals: a client in a retry loop could write thousands a second.

Each reason has a number of lines per period, and the first line of the next period says
how many were left out.
"""

from __future__ import annotations

from dataclasses import dataclass

LINES_PER_PERIOD = 10
PERIOD_S = 10.0


@dataclass
class _Lines:
    """The lines of one reason in its present period."""

    begin_s: float
    num_written: int = 0
    num_left_out: int = 0


class LineBudget:
    """How many lines each reason may still write; reasons must be a closed set."""

    def __init__(self) -> None:
        self._of: dict[str, _Lines] = {}

    def take(self, reason: str, now_s: float) -> int | None:
        """Returns the number of lines left out since the last one; None to leave this one out."""
        old = self._of.get(reason)
        left_out = 0
        if old is None or now_s - old.begin_s >= PERIOD_S:
            left_out = old.num_left_out if old else 0
            self._of[reason] = old = _Lines(now_s)
        if old.num_written >= LINES_PER_PERIOD:
            old.num_left_out += 1
            return None
        old.num_written += 1
        return left_out
