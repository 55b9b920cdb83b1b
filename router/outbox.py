"""The queue of messages to one client.

One task writes, so messages keep their order and a slow client blocks only its own
session: `put` waits until there is room again. Progress neither waits nor accumulates: a
newer one replaces one that has not been written yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from stream2llm.api.events import Event, Progress

Send = Callable[[Event], Awaitable[None]]
_MAX_QUEUED = 16


class _Mark:
    """Queue entries that are not events."""


_PROGRESS, _CLOSED = _Mark(), _Mark()


class Outbox:
    """Many producers, one consumer (`drain`)."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event | _Mark] = asyncio.Queue()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._progress: Progress | None = None

    async def put(self, event: Event) -> None:
        """Queues an event that must be delivered; returns when there is room for another one.

        A caller that is cancelled in that wait has queued it: what an answer counts is sent.
        """
        self._add(event)
        await self._has_room.wait()

    def put_progress(self, figures: Progress) -> None:
        """Queues the newest figures, unless figures are queued already.

        A full queue is full of tokens of the answer, to which progress no longer matters:
        dropped.
        """
        if self._progress is None:
            if self._queue.qsize() >= _MAX_QUEUED:
                return
            self._add(_PROGRESS)
        self._progress = figures

    async def close(self) -> None:
        """Ends the queue; `drain` returns when all is written."""
        self._add(_CLOSED)
        await self._has_room.wait()

    def _add(self, entry: Event | _Mark) -> None:
        self._queue.put_nowait(entry)
        if self._queue.qsize() > _MAX_QUEUED:
            self._has_room.clear()

    async def drain(self, send: Send) -> None:
        """Writes until `close`."""
        while True:
            entry = await self._queue.get()
            if self._queue.qsize() <= _MAX_QUEUED:
                self._has_room.set()
            if entry is _CLOSED:
                return
            if isinstance(entry, _Mark):
                figures, self._progress = self._progress, None
                assert figures is not None, "a mark stands for figures"
                await send(figures)
            else:
                await send(entry)
