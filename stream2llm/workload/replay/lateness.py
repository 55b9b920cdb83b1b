"""How late a replay is, and whose fault that is.

Judged for one session's events: an event can be begun as soon as it is due and the system has
taken the one before it. That it was begun later than that is the generator's fault;
everything else that makes it late is the system's (no credit, no admission).

The generator's event loop is measured all the time: a loop that is busy submits late and,
what sessions cannot notice themselves, reads answers late. So a task asks to be woken at
fixed distances and notes by how much it was not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stream2llm.serving.clock import Clock
from stream2llm.workload.report.lateness import LOOP_LAG_MAX, LOOP_LAG_P99
from stream2llm.workload.report.statistics import distribution


class Lateness:
    """The worst of one session, in seconds."""

    def __init__(self) -> None:
        # When the system had taken the event before.
        self._free_s = 0.0
        self.total_s = 0.0
        # The generator's share of it.
        self.own_s = 0.0

    def begun(self, due_s: float, now_s: float) -> None:
        """An event is begun now."""
        self.total_s = max(self.total_s, now_s - due_s)
        self.own_s = max(self.own_s, now_s - max(due_s, self._free_s))

    def taken(self, now_s: float) -> None:
        """The system has taken it now, and may be given the next one."""
        self._free_s = now_s

    def sent(self, due_s: float, now_s: float) -> None:
        """The same, of an event whose way to the system counts as its lateness too."""
        self.taken(now_s)
        self.total_s = max(self.total_s, now_s - due_s)


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
    """A lag, and those of all that would have been woken while it lasted.

    One stall of five seconds would else count as much as one moment of none.
    """
    return [lag_s - number * every_s for number in range(int(lag_s / every_s) + 1)]


def lag_counters(lags_s: Sequence[float]) -> dict[str, float]:
    """What of all lags goes into a record."""
    found = distribution(lags_s)
    if found is None:
        return {}
    return {LOOP_LAG_P99: found.percentiles[99.0], LOOP_LAG_MAX: found.maximum}
