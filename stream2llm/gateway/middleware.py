"""What surrounds every HTTP request: it is counted, bounded in size, and refused in a drain.

Plain ASGI: Starlette's own base class for middleware hides a client that has left from the
handler, whose session would go on.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream2llm.api.errors import (
    IdleTimeoutError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
)
from stream2llm.gateway.errors import answered, body_of, headers_of
from stream2llm.gateway.metrics import UNKNOWN_ROUTE, GatewayMetrics

# Status of what was never answered, as reverse proxies write it.
CLIENT_LEFT = 499
# Seconds in which the whole body of a request has to arrive.
BODY_LIMIT_S = 60.0


def error_response(error: Stream2LLMError, names: dict[str, str] | None = None) -> Response:
    """The response to a request that is refused."""
    # In ASCII: a parameter's name may be half of a surrogate pair, which UTF-8 cannot carry.
    content = json.dumps(body_of(error, names or {}))
    return Response(content, answered(error).status, headers_of(error), "application/json")


class InFlight:
    """The requests under way: counts them, and refuses new ones in a drain."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._num = 0
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self.is_draining = False

    @property
    def num_requests(self) -> int:
        """Number of requests under way."""
        return self._num

    async def wait_empty(self, timeout_s: float) -> bool:
        """Returns whether all requests have ended, at most so long from now."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_empty.wait()
        return self._num == 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status = CLIENT_LEFT

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        self._begin()
        try:
            await self._handler(scope)(scope, receive, noting)
        finally:
            self._end(scope, status)

    def _handler(self, scope: Scope) -> ASGIApp:
        if not self.is_draining or scope["path"] in ("/health", "/metrics"):
            return self._app
        error = UnavailableError("the gateway is draining", reason="DRAINING")
        return error_response(error)

    def _begin(self) -> None:
        self._num += 1
        self._is_empty.clear()
        self._metrics.begun()

    def _end(self, scope: Scope, status: int) -> None:
        self._num -= 1
        if self._num == 0:
            self._is_empty.set()
        self._metrics.ended(getattr(scope.get("route"), "path", UNKNOWN_ROUTE), status)


class BodyLimit:
    """Bounds a request's body, in bytes and in time, before anything reads it."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_LIMIT_S):
                body = await self._read(receive)
        except TimeoutError:
            late = IdleTimeoutError(f"the body did not arrive within {BODY_LIMIT_S:g} s")
            await error_response(late)(scope, receive, send)
            return
        except Stream2LLMError as error:
            await error_response(error)(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client has left. Raises OverloadedError."""
        parts, num_bytes = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
            if num_bytes > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> OverloadedError:
        error = OverloadedError(
            f"the request has more than {self._max_body_bytes} bytes, which are the limit",
            reason="MESSAGE_TOO_LARGE",
        )
        error.retry_after_s = None  # the same request can never pass
        return error


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once more, and then what the connection brings: that the client has left."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message
