"""How late an event loop wakes up: all that it serves is late by as much.

An event that comes while the loop is held up (a garbage collection, a call that blocks, a busy
core) has not arrived yet as far as the program can see, so its waiting time does not show it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry, Histogram

from stream2llm.serving.system.clock import Clock

_INTERVAL_S = 0.25
_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class LoopLag:
    """Measures the loop in which `watch` runs."""

    def __init__(
        self,
        registry: CollectorRegistry,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lag = Histogram(
            "stream2llm_event_loop_lag_seconds",
            "Seconds by which the event loop woke up late, measured four times a second.",
            buckets=_BUCKETS_S,
            registry=registry,
        )

    async def watch(self) -> None:
        """Measures until it is cancelled."""
        while True:
            due_s = self._clock.monotonic_s() + _INTERVAL_S
            await self._sleep(_INTERVAL_S)
            self._lag.observe(max(self._clock.monotonic_s() - due_s, 0.0))
