"""The bounded buffer between an RPC's reader and its consumer.

A newer Progress replaces an unread one, so that a session whose events are not read
holds two events, not thousands. A full buffer drops its oldest Progress or
OversizedDocument: the session has both, and the reader must go on to receive credit and
failures. When the buffer is full of tokens the reader waits, and gRPC's flow control
slows the server down.
"""

from __future__ import annotations

import asyncio
from collections import deque

from stream2llm.api.events import Event, OversizedDocument, Progress


class EventBuffer:
    """One writer, one reader, both in the same event loop."""

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._events: deque[Event] = deque()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._closed = False
        self._error: BaseException | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing can be added any more."""
        return self._closed

    async def put(self, event: Event) -> None:
        """Adds an event; waits while the buffer is full. Dropped when closed."""
        if self._replaces_last(event):
            self._events[-1] = event
            return
        if len(self._events) >= self._capacity:
            self._drop_oldest_report()
        while len(self._events) >= self._capacity and not self._closed:
            self._writable.clear()
            await self._writable.wait()
        if not self._closed:
            self._events.append(event)
            self._readable.set()

    def close(self, error: BaseException | None = None) -> None:
        """Ends the iteration after what is buffered, or makes it raise `error`."""
        if not self._closed:
            self._closed, self._error = True, error
            self._readable.set()
            self._writable.set()

    def __aiter__(self) -> EventBuffer:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise self._error or StopAsyncIteration
            self._readable.clear()
            await self._readable.wait()
        self._writable.set()
        return self._events.popleft()

    def _drop_oldest_report(self) -> None:
        for index, event in enumerate(self._events):
            if isinstance(event, Progress | OversizedDocument):
                del self._events[index]
                return

    def _replaces_last(self, event: Event) -> bool:
        return (
            isinstance(event, Progress)
            and bool(self._events)
            and isinstance(self._events[-1], Progress)
        )
