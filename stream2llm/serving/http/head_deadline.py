"""Listens for an aiohttp application whose peers must send a request's head in time.

aiohttp itself waits for ever for one that is slow or half-open. Each connection serves one
request, so that the deadline is that of a connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

HEAD_LIMIT_S = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HeadDeadline:
    """That of all connections of one application, which has `middleware` as its first one."""

    def __init__(self, limit_s: float = HEAD_LIMIT_S) -> None:
        self._limit_s = limit_s
        # Connections of which no head has come.
        self._waiting: dict[Any, asyncio.TimerHandle] = {}

    async def listen(
        self, runner: web.AppRunner, host: str, port: int, tls: ssl.SSLContext | None
    ) -> asyncio.Server:
        """Listens for the application of a runner that is set up; raises OSError."""
        loop = asyncio.get_running_loop()

        def connect() -> asyncio.Protocol:
            assert runner.server is not None
            connection = runner.server()
            self._waiting[connection] = loop.call_later(self._limit_s, self._give_up, connection)
            return connection

        handshake_s = self._limit_s if tls else None
        return await loop.create_server(
            connect, host, port, ssl=tls, ssl_handshake_timeout=handshake_s
        )

    def _give_up(self, connection: Any) -> None:
        del self._waiting[connection]
        if connection.transport is not None:
            connection.transport.abort()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The head has come."""
        timer = self._waiting.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()
        response = await handler(request)
        response.force_close()
        return response
