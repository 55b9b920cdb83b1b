"""A loop that wakes up late shows it."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from stream2llm.serving.system.clock import ManualClock
from stream2llm.serving.system.loop_lag import LoopLag

NAME = "stream2llm_event_loop_lag_seconds"


class EndedError(Exception):
    """The loop has been watched for long enough."""


async def test_each_wake_up_counts_with_what_it_was_late() -> None:
    registry, clock, late_s = CollectorRegistry(), ManualClock(), [0.0, 2.0, 0.03]

    async def sleep(duration_s: float) -> None:
        if not late_s:
            raise EndedError
        clock.advance(duration_s + late_s.pop(0))

    with pytest.raises(EndedError):
        await LoopLag(registry, clock, sleep).watch()
    assert registry.get_sample_value(f"{NAME}_count") == 3
    assert registry.get_sample_value(f"{NAME}_sum") == pytest.approx(2.03)
    assert registry.get_sample_value(f"{NAME}_bucket", {"le": "1.0"}) == 2
