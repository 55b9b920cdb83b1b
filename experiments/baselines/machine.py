"""Who else computed on this machine during a run: what a figure from a shared one is worth."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from stream2llm.serving.system.clock import Clock

# Share of the machine's CPU time that others may take before a run's figures are suspect.
TOLERATED_SHARE = 0.05


class MachineWatch:
    """From its making on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._busy_s = _busy_s()
        self._driver_s = _driver_s()

    def counters(self, system_cpu_s: float) -> Mapping[str, float]:
        """CPU seconds of the driver, and of all processes that are neither it nor the system."""
        driver_s = _driver_s() - self._driver_s
        others_s = _busy_s() - self._busy_s - driver_s - system_cpu_s
        cores_s = (self._clock.monotonic_s() - self._began_s) * (psutil.cpu_count() or 1)
        return {
            "driver_cpu_s": driver_s,
            "others_cpu_s": max(others_s, 0.0),
            "others_share": max(others_s, 0.0) / cores_s,
        }


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - _counted_twice(times))


def _counted_twice(times: object) -> float:
    """Linux counts guests' time as user time too."""
    return float(getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0))


def _driver_s() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
