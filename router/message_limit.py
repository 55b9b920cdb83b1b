"""Refuses messages that are too large in our words, so that they are named, counted and logged.

What gRPC refuses itself it tells the client alone: the server's handler is cancelled as
if the client had left, or never begins. So gRPC's own limit stands above ours, and what
lies between is received and refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from stream2llm.api.errors import OverloadedError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TooLarge:
    """In place of a message."""

    num_bytes: int
    limit_bytes: int

    def error(self) -> OverloadedError:
        """What its sender gets."""
        error = OverloadedError(
            f"the message has {self.num_bytes} bytes, which is larger than max_message_bytes"
            f" ({self.limit_bytes}): send the documents in several appends",
            reason="MESSAGE_TOO_LARGE",
        )
        error.retry_after_s = None  # the same message can never pass
        return error


def grpc_limit(limit_bytes: int) -> int:
    """What gRPC may receive: twice as much, small limits more, so that most of what is sent is named."""
    return limit_bytes + max(limit_bytes, MIB)


class MessageLimit(grpc.aio.ServerInterceptor):
    """Puts a `TooLarge` in place of a request of these RPCs that is over the limit."""

    def __init__(self, limit_bytes: int, methods: frozenset[str]) -> None:
        self._limit_bytes = limit_bytes
        self._methods = methods

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The handler of an RPC, with our way to read its requests."""
        handler = await continuation(details)
        if handler is None or details.method not in self._methods:
            return handler
        return handler._replace(request_deserializer=self._reader(handler.request_deserializer))

    def _reader(self, parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def read(raw: bytes) -> Any:
            if len(raw) > self._limit_bytes:
                return TooLarge(len(raw), self._limit_bytes)
            return parse(raw)

        return read
