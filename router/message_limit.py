"""Refuses oversized messages before the handler, so that they are named, counted and logged.

If gRPC refuses a message, only the client learns the reason: the server's handler is
cancelled as if the client had left, or never begins. So gRPC's own limit is higher, and
messages between the two limits are received and refused here.
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
    """Replaces a message that is too large."""

    num_bytes: int
    limit_bytes: int

    def error(self) -> OverloadedError:
        """Returns the error for the sender."""
        error = OverloadedError(
            f"the message has {self.num_bytes} bytes, which is larger than max_message_bytes"
            f" ({self.limit_bytes}): send the documents in several appends",
            reason="MESSAGE_TOO_LARGE",
        )
        error.retry_after_s = None  # the same message can never pass
        return error


def grpc_limit(limit_bytes: int) -> int:
    """Returns gRPC's limit: at least twice ours, so that most large messages are named."""
    return limit_bytes + max(limit_bytes, MIB)


class MessageLimit(grpc.aio.ServerInterceptor):
    """Replaces requests of these RPCs that are over the limit with `TooLarge`."""

    def __init__(self, limit_bytes: int, methods: frozenset[str]) -> None:
        self._limit_bytes = limit_bytes
        self._methods = methods

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Returns the RPC's handler, with a deserializer that checks the limit."""
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
