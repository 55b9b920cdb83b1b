"""How late the event loop of the generator is to do anything, measured all the time.

A loop that is busy submits late and, what sessions cannot notice themselves,
reads answers late. So a task asks to be woken at fixed distances and notes by
how much it was not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stream2llm.serving.clock import Clock
from stream2llm.workload.report.lateness import LOOP_LAG_MAX, LOOP_LAG_P99
from stream2llm.workload.report.statistics import distribution

_EVERY_S = 0.05


class LagProbe:
    """Run it as a task; cancel it when it is over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lags_s: list[float] = []

    async def run(self) -> None:
        """Measures until it is cancelled."""
        while True:
            before_s = self._clock.monotonic_s()
            await asyncio.sleep(_EVERY_S)
            lag_s = max(self._clock.monotonic_s() - before_s - _EVERY_S, 0.0)
            self._lags_s += with_missed(lag_s, _EVERY_S)

    def counters(self) -> dict[str, float]:
        """For RunRecord.counters; nothing when there was no time to measure."""
        return lag_counters(self._lags_s)


def with_missed(lag_s: float, every_s: float) -> list[float]:
    """A lag, and those of whoever would have been woken while it lasted.

    One stall of five seconds would else count as much as one moment of none.
    """
    return [lag_s - number * every_s for number in range(int(lag_s / every_s) + 1)]


def lag_counters(lags_s: Sequence[float]) -> dict[str, float]:
    """What of all lags goes into a record."""
    found = distribution(lags_s)
    if found is None:
        return {}
    return {LOOP_LAG_P99: found.percentiles[99.0], LOOP_LAG_MAX: found.maximum}
