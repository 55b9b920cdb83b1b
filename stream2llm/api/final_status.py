"""The status that the other side gave an RPC, whatever grpc.aio says meanwhile.

When an RPC ends while we write to it, grpc.aio (1.85) reports INTERNAL,
"Internal error from Core", to the writer and to the reader. That either
overwrites the true status, which is why it is taken down as it comes, or is
overwritten by it a moment later, without notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

_PROVISIONAL = "Internal error from Core"
_NUM_LOOKS, _BETWEEN_LOOKS_S = 200, 0.01


class FinalStatus:
    """Watches one grpc.aio call from its beginning."""

    def __init__(
        self, call: Any, on_known: Callable[[grpc.aio.AioRpcError], object] = lambda _: None
    ) -> None:
        """`on_known` is called once with the true status, as soon as it is known."""
        self._call = call
        self._on_known = on_known
        self._true: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._look)

    async def of(self, error: grpc.aio.AioRpcError | None = None) -> grpc.aio.AioRpcError:
        """The true error behind `error`; its code is OK when a write merely came too late."""
        if error is not None and not _is_provisional(error):
            return error
        for _ in range(_NUM_LOOKS):
            if self._true is not None:
                return self._true
            await asyncio.sleep(_BETWEEN_LOOKS_S)  # no event tells of the overwriting
            if self._call.done():
                self._look(self._call)
        return error or grpc.aio.AioRpcError(
            grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata(), "no status came"
        )

    def _look(self, call: Any) -> None:
        code, details = _now(call.code()), _now(call.details())
        trailers = _now(call.trailing_metadata())
        status = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)
        if self._true is None and not _is_provisional(status):
            self._true = status
            self._on_known(status)


def _is_provisional(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _PROVISIONAL


def _now(answer: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for: the call has a status."""
    try:
        answer.send(None)
    except StopIteration as done:
        return done.value
    answer.close()
    raise AssertionError("the call had no status yet")
