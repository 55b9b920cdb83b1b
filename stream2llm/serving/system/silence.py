"""Measures how long another process has given no answer, on a machine that may be busy or paused.

Only time counts in which this process itself ran. Where the whole machine stands still (a
virtual machine that is moved, a laptop that sleeps, a debugger that stops all processes),
or is so busy that this process hardly runs, the other one has had no time to answer either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

# Between two looks at whether the answer has come.
LOOK_EVERY_S = 0.5
# A look that comes later than this many intervals after the one before counts as this many.
_MAX_INTERVALS_COUNTED = 2


class Silence:
    """The time since a question, and how much of it is allowed: the highest limit so far."""

    def __init__(self, limit_s: float, look_every_s: float = LOOK_EVERY_S) -> None:
        self.silent_s = 0.0
        self.limit_s = limit_s
        # Short limits are looked at more often.
        self.look_every_s = min(look_every_s, limit_s / 4)

    def note(self, elapsed_s: float) -> None:
        """Notes that `elapsed_s` have passed since the look before."""
        self.silent_s += min(elapsed_s, _MAX_INTERVALS_COUNTED * self.look_every_s)

    def allow(self, limit_s: float) -> None:
        """Raises the limit to this one, if it is higher."""
        self.limit_s = max(self.limit_s, limit_s)

    @property
    def is_too_long(self) -> bool:
        """Whether it has lasted longer than is allowed."""
        return self.silent_s > self.limit_s


async def is_answered(
    question: asyncio.Future[Any],
    silence: Silence,
    now_s: Callable[[], float],
    limit_s: Callable[[], float] = lambda: 0.0,
) -> bool:
    """Waits for the question; returns False, and leaves it running, once that takes too long.

    `limit_s` is asked at each look for a limit that may be higher than the one before.
    """
    before_s = now_s()
    while not (await asyncio.wait({question}, timeout=silence.look_every_s))[0]:
        at_s = now_s()
        silence.note(at_s - before_s)
        silence.allow(limit_s())
        before_s = at_s
        if silence.is_too_long:
            return False
    return True
