"""What the garbage collector takes shows as a metric."""

from __future__ import annotations

import gc

import pytest
from prometheus_client import CollectorRegistry

from stream2llm.serving.system.clock import ManualClock
from stream2llm.serving.system.gc_pauses import GcPauses

NAME = "stream2llm_gc_pause_seconds"


class SlowlyFreed:
    """A cycle whose collection takes a while, by the clock."""

    def __init__(self, clock: ManualClock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self.itself = self

    def __del__(self) -> None:
        self._clock.advance(self._seconds)


def test_each_collection_counts_with_what_it_took_by_generation() -> None:
    registry, clock = CollectorRegistry(), ManualClock()
    pauses = GcPauses(clock)
    registry.register(pauses)
    gc.collect()
    pauses.watch()
    try:
        SlowlyFreed(clock, 0.03)
        gc.collect()
        SlowlyFreed(clock, 3.0)
        gc.collect()
        SlowlyFreed(clock, 0.002)
        gc.collect(0)
    finally:
        pauses.stop()
    SlowlyFreed(clock, 9.0)
    gc.collect()  # not counted

    def value(suffix: str, generation: str, **labels: str) -> float | None:
        labels["generation"] = generation
        return registry.get_sample_value(f"{NAME}_{suffix}", labels)

    assert value("count", "2") == 2
    assert value("sum", "2") == pytest.approx(3.03)
    assert value("bucket", "2", le="0.05") == 1
    assert value("bucket", "2", le="2.5") == 1
    assert value("bucket", "2", le="+Inf") == 2
    assert value("bucket", "0", le="0.0025") == value("count", "0")


def test_it_may_be_stopped_before_it_watches() -> None:
    GcPauses(ManualClock()).stop()
