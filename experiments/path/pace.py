"""Steps of an engine that go on when the measurement says so."""

from __future__ import annotations

import asyncio
from math import inf


class Pace:
    """How many steps each stream may have had; all, unless it is limited."""

    def __init__(self) -> None:
        self._num_steps = inf
        # Set, and replaced, when the number changes.
        self._changed = asyncio.Event()

    def allow(self, num_steps: float) -> None:
        """Each stream may have so many steps from now on."""
        self._num_steps = num_steps
        now, self._changed = self._changed, asyncio.Event()
        now.set()

    def allow_all(self) -> None:
        """No stream waits any more."""
        self.allow(inf)

    async def wait(self, num_steps: int) -> None:
        """Returns when a stream may have so many steps."""
        while self._num_steps < num_steps:
            await self._changed.wait()
