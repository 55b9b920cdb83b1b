"""A call whose other end does not keep up."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from stream2llm.serving.mux.statuses import cancelled_here, status

_CANCELLED = cancelled_here()


class StuckCall:
    """A multiplexed call whose other end takes no message until the test lets it."""

    def __init__(self) -> None:
        self.may_write = asyncio.Event()
        self.writing = asyncio.Event()
        self.written: list[Any] = []
        self.has_fetch = asyncio.Event()
        self.has_abort = asyncio.Event()
        # Ends of fetches, for the reader; and whether one was read.
        self.has_ended = asyncio.Event()
        self.ends: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = asyncio.Event()
        self._callbacks: list[Any] = []
        self.has_sent_last = False
        # Its status once it has ended.
        self.final = _CANCELLED

    async def write(self, message: Any) -> None:
        self.writing.set()
        self.has_sent_last = False
        try:
            if not self.cancelled.is_set():
                await self.may_write.wait()
        except asyncio.CancelledError:  # so does a multiplexed call
            self.cancel()
            raise
        if self.cancelled.is_set():
            raise asyncio.CancelledError if self.final is _CANCELLED else self.final
        self.written.append(message)
        self.has_sent_last = True
        match message.WhichOneof("event"):
            case "fetch":
                self.has_fetch.set()
            case "abort":
                self.has_abort.set()

    def __aiter__(self) -> StuckCall:
        return self

    async def __anext__(self) -> Any:
        end, cancelled = asyncio.create_task(self.ends.get()), self.cancelled.wait()
        ending = asyncio.create_task(cancelled)
        await asyncio.wait({end, ending}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            end.cancel()
            raise asyncio.CancelledError  # as a call does for any reader, cancelled here
        ending.cancel()
        self.has_ended.set()
        return end.result()

    @property
    def kinds(self) -> list[str]:
        """What has been written."""
        return [message.WhichOneof("event") for message in self.written]

    def add_done_callback(self, callback: Any) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        """The other end is lost."""
        self.final = status(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        self.cancelled.set()
        for callback in self._callbacks:
            callback(self)

    def done(self) -> bool:
        return self.cancelled.is_set()

    def cancel(self) -> None:
        self.cancelled.set()
