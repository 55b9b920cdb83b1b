"""Bounds the heads of HTTP requests, in bytes and in time; uvicorn itself waits for ever."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stream2llm.serving.http.head_deadline import HEAD_LIMIT_S

MAX_HEAD_BYTES = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """A connection that ends where the head of a request is too long, or comes too slowly."""

    head_limit_s = HEAD_LIMIT_S
    _deadline: asyncio.TimerHandle | None = None
    # None between the head of a request and the beginning of the next one.
    _num_head_bytes: int | None = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request has to come."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """No deadline outlives the connection."""
        self._got_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what does not complete a head."""
        super().data_received(data)
        if self._num_head_bytes is not None:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        """The next request on the connection; between two there is uvicorn's own deadline."""
        super().on_message_begin()
        if self._num_head_bytes is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._got_head()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._num_head_bytes = 0
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self.head_limit_s, self.transport.abort)

    def _got_head(self) -> None:
        self._num_head_bytes = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
