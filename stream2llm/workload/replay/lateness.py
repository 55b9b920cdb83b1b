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

from stream2llm.serving.system.clock import Clock
from stream2llm.workload.report.lateness import LOOP_LAG_MAX, LOOP_LAG_P99
from stream2llm.workload.report.statistics import distribution


class Timetable:
    """When the events of one session are due and begin, in seconds from the begin of the run."""

    def __init__(self, begin_s: float, clock: Clock) -> None:
        self._begin_s = begin_s
        self._clock = clock
        # When the system had taken the event before.
        self._free_s = 0.0
        # The worst of the session, and the generator's share of it.
        self.lateness_s = 0.0
        self.own_lateness_s = 0.0

    def now_s(self) -> float:
        """Returns the present instant."""
        return self._clock.monotonic_s() - self._begin_s

    async def due(self, due_s: float) -> float:
        """Waits until an event is due; returns when it is begun, which is now."""
        left_s = due_s - self.now_s()
        if left_s > 0:
            await asyncio.sleep(left_s)
        return self.begun(due_s)

    def begun(self, due_s: float) -> float:
        """Notes that an event is begun, and returns when: now."""
        now_s = self.now_s()
        self.lateness_s = max(self.lateness_s, now_s - due_s)
        self.own_lateness_s = max(self.own_lateness_s, now_s - max(due_s, self._free_s))
        return now_s

    def taken(self) -> None:
        """The system has taken it now, and may be given the next one."""
        self._free_s = self.now_s()

    def sent(self, due_s: float) -> None:
        """The same, of an event whose way to the system counts as its lateness too."""
        self.taken()
        self.lateness_s = max(self.lateness_s, self._free_s - due_s)


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
