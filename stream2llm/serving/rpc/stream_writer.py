"""Writes messages of a server-streaming RPC so that a status can still follow.

grpc.aio (1.85) refuses to send a status while a message is being sent
(TOO_MANY_OPERATIONS), and the peer would wait for ever. So a write continues when its
task fails or is cancelled meanwhile, and `settle` waits for it before a status is sent,
also that of a handler that returns. That takes a task for each message. A task that is
never cancelled while it writes does without (`write_uncancelled`), and saves a quarter of
what relaying a token costs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from stream2llm.api.call_metadata import Metadata
from stream2llm.api.errors import InternalError, Stream2LLMError
from stream2llm.api.rpc_status import abort


class PeerGoneError(Exception):
    """The peer has left; gRPC is about to cancel the handler."""


class StreamWriter:
    """Writes to one RPC; one writer at a time."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._pending: asyncio.Future[None] | None = None
        self._is_writing = False
        # Set by `write_uncancelled` for a `settle` that waits for it.
        self._written: asyncio.Event | None = None

    async def begin(self, metadata: Metadata) -> None:
        """Sends initial metadata ahead of the first message; raises PeerGoneError."""
        await self._send(self._context.send_initial_metadata(metadata))

    async def write(self, message: Any) -> None:
        """Returns when gRPC has taken the message; raises PeerGoneError."""
        await self._send(self._context.write(message))

    async def write_uncancelled(self, message: Any) -> None:
        """As `write`, for a task that is not cancelled meanwhile."""
        self._is_writing = True
        try:
            await self._context.write(message)
        except (grpc.aio.InternalError, grpc.aio.UsageError) as error:
            raise PeerGoneError from error
        finally:
            self._is_writing = False
            if self._written is not None:
                self._written.set()

    async def _send(self, sending: Awaitable[None]) -> None:
        self._pending = asyncio.ensure_future(sending)
        self._pending.add_done_callback(_look_at)
        try:
            await asyncio.shield(self._pending)
        except (grpc.aio.InternalError, grpc.aio.UsageError) as error:
            raise PeerGoneError from error

    async def settle(self) -> None:
        """Returns when nothing is being written."""
        if self._pending is not None:
            await asyncio.wait({self._pending})
        if self._is_writing:
            self._written = asyncio.Event()
            await self._written.wait()


@asynccontextmanager
async def failures_as_status(
    context: Any,
    writer: StreamWriter | None,
    log: logging.Logger,
    describe: Callable[[Exception], str],
) -> AsyncIterator[None]:
    """Ends the RPC with the status of what its handler's body raises, or without an error.

    `writer` is what it writes to; None for a multiplexed call, where a status can always follow.
    Exceptions that are not ours are logged with their traceback; `describe` returns the
    text for the peer.
    """
    settle = _nothing if writer is None else writer.settle
    try:
        yield
        await settle()
    except PeerGoneError:
        return  # gRPC is about to cancel the handler
    except Stream2LLMError as error:
        await settle()
        await abort(context, error)
    except Exception as error:
        log.exception("rpc_broke")
        await settle()
        await abort(context, InternalError(describe(error)))


async def _nothing() -> None:
    pass


def _look_at(write: asyncio.Future[None]) -> None:
    # Otherwise asyncio warns that the exception was never retrieved.
    if not write.cancelled():
        write.exception()
