"""How long Python's garbage collector stops the process, as a metric.

A collection may begin at any allocation, also inside the metrics library under its locks: so
what is noted here are plain numbers, which become a metric when one is asked for.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stream2llm.serving.system.clock import Clock

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# Young, middle, full.
_NUM_GENERATIONS = 3


class GcPauses(Collector):
    """Measures from `watch` to `stop`; for a registry of the process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_s = 0.0
        # By generation: collections by bucket, the last of which has no bound, and seconds.
        self._counts = [[0] * (len(_BUCKETS_S) + 1) for _ in range(_NUM_GENERATIONS)]
        self._sums_s = [0.0] * _NUM_GENERATIONS

    def watch(self) -> None:
        """Begins to measure."""
        gc.callbacks.append(self._note)

    def stop(self) -> None:
        """Ends what `watch` has begun; may be called without it."""
        if self._note in gc.callbacks:
            gc.callbacks.remove(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began_s = self._clock.monotonic_s()
            return
        seconds, generation = self._clock.monotonic_s() - self._began_s, info["generation"]
        self._counts[generation][bisect_left(_BUCKETS_S, seconds)] += 1
        self._sums_s[generation] += seconds

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = HistogramMetricFamily(
            "stream2llm_gc_pause_seconds",
            "Seconds for which Python's garbage collector stopped the process, by generation: 0, 1;"
            " 2 is a full collection.",
            labels=["generation"],
        )
        for generation, counts in enumerate(self._counts):
            family.add_metric([str(generation)], _cumulated(counts), self._sums_s[generation])
        yield family


def _cumulated(counts: list[int]) -> list[tuple[str, float]]:
    total = 0
    buckets = []
    for bound, count in zip((*map(str, _BUCKETS_S), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
