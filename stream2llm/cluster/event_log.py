"""What has happened in the cluster, one line an event, for those who follow it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

_log = logging.getLogger(__name__)

EVENTS_KEPT = 1000


class EventLog:
    """Counts events, keeps the newest, and wakes who waits for one."""

    def __init__(self) -> None:
        self.num_events = 0
        self._kept: deque[str] = deque(maxlen=EVENTS_KEPT)
        self._listeners: set[asyncio.Event] = set()

    def add(self, name: str, what: str) -> None:
        """Adds what has happened to a replica."""
        _log.info("replica_event name=%s event=%s", name, what)
        self._kept.append(f"{name} {what}")
        self.num_events += 1
        for listener in self._listeners:
            listener.set()

    def since(self, seen: int) -> list[str]:
        """Returns the events after the first `seen`, as far as they are kept."""
        seen = seen if seen <= self.num_events else 0  # of an earlier controller
        new = min(self.num_events - seen, len(self._kept))
        return list(self._kept)[len(self._kept) - new :] if new > 0 else []

    async def wait(self, seen: int) -> None:
        """Returns once there are more than `seen` events, or fewer: others were an earlier controller's."""
        listener = asyncio.Event()
        self._listeners.add(listener)
        try:
            while self.num_events == seen:
                listener.clear()
                await listener.wait()
        finally:
            self._listeners.discard(listener)
