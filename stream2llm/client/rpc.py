"""One RPC of a session, at one router: written by one task at a time, read by one.

Only read() and write() are used on the call: gRPC forbids mixing them with iteration.
Knows neither documents nor the order of events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from stream2llm.api.errors import InternalError, Stream2LLMError
from stream2llm.api.events import Event
from stream2llm.api.final_status import FinalStatus
from stream2llm.api.tasks import is_cancelled
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.status import error_from_rpc
from stream2llm.client.translate import event_from

# How long an answered session waits for the server's closing status before it
# cancels the RPC, so that the server does not count it as cancelled.
END_GRACE_S = 1.0


class RpcFailedError(Exception):
    """The RPC has failed with this error, and perhaps not the session."""

    def __init__(self, error: Stream2LLMError) -> None:
        super().__init__(error.message)
        self.error = error


class SessionRpc:
    """`cancel` ends it, whatever state it is in."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._status = FinalStatus(call)

    async def write(self, request: pb.StreamGenerateRequest, *, last: bool = False) -> bool:
        """Sends an event, with `last` the last one; False: the RPC has ended, `read` says why."""
        try:
            await self._call.write(request)
            if last:
                await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return False
        except asyncio.CancelledError:
            # gRPC raises it, too, where the RPC was cancelled and not this task.
            if is_cancelled():
                raise
            return False
        return True

    async def answered(self) -> None:
        """Returns when the router has taken the RPC, or when it has ended: `read` says which."""
        await self._call.initial_metadata()

    async def read(self, timeout_s: float | None, waited_for: Callable[[], str]) -> Event | None:
        """Returns the next event; None where the router has ended the RPC without an error.

        Raises RpcFailedError; where that is the time limit `timeout_s` of the call, its error
        says what had not happened (`waited_for`).
        """
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            true = await self._status.of(error)
            if true.code() is grpc.StatusCode.OK:
                return None
            raise RpcFailedError(error_from_rpc(true, timeout_s, waited_for())) from None
        return None if message is grpc.aio.EOF else event_from(message)

    def cancel(self) -> None:
        """Ends the RPC; does nothing when it has ended."""
        self._call.cancel()


def ended_early() -> InternalError:
    """Returns the error for an RPC that has ended well, without the end of an answer."""
    message = "the server ended the session without an answer"
    return InternalError(message, reason="STREAM_ENDED_EARLY")
