"""Sends an outbox's frames on one stream: what one turn of the event loop has left there, together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from stream2llm.api.v1.worker_pb2 import Frame
from stream2llm.serving.mux.outbox import Outbox, Ticket

# More than this waits only when gRPC takes no more, because the other process reads nothing.
_MOST_WAITING_BYTES = 4 * 1024 * 1024


class Sender:
    """One end's frames; `run` sends them until it is cancelled, or until `write` raises."""

    def __init__(
        self, write: Callable[[list[Frame]], Awaitable[object]], max_message_bytes: int
    ) -> None:
        """`write` returns when gRPC has taken the frames, which have so many bytes at most."""
        self._write = write
        self._outbox = Outbox(max_message_bytes)
        self._has_news = asyncio.Event()
        # Whether messages should be sent now; frames of other kinds always may.
        self.has_room = True
        self._at_room: list[Callable[[], object]] = []

    def push(self, frame: Frame, ticket: Ticket | None = None) -> None:
        """Sends a frame that is not part of a message."""
        self._outbox.push(frame, ticket)
        self._has_news.set()

    def push_message(self, call_id: int, data: bytes, ticket: Ticket | None = None) -> None:
        """Sends a message, however long."""
        self._outbox.push_message(call_id, data, ticket)
        self._has_news.set()
        if self._outbox.num_bytes > _MOST_WAITING_BYTES:
            self.has_room = False

    def drop_long(self, call_id: int) -> None:
        """Forgets what is left of a long message of a call that has ended."""
        self._outbox.drop_long(call_id)

    def drop(self, call_id: int) -> None:
        """Forgets all that waits of a call that has ended."""
        self._outbox.drop(call_id)

    def at_room(self, callback: Callable[[], object]) -> None:
        """Calls it once when `has_room` is true again, or this end of the stream has ended."""
        self._at_room.append(callback)

    async def run(self) -> None:
        """Sends what there is, and what comes."""
        try:
            while True:
                frames, tickets = self._outbox.take()
                if not frames:
                    self._has_news.clear()
                    await self._has_news.wait()
                    continue
                await self._write(frames)
                for ticket in tickets:
                    ticket.sent()
                if not self.has_room and self._outbox.num_bytes <= _MOST_WAITING_BYTES // 2:
                    self._make_room()
        finally:
            self._make_room()

    def _make_room(self) -> None:
        self.has_room = True
        callbacks, self._at_room = self._at_room, []
        for callback in callbacks:
            callback()
