"""The RPC of one session: one task reads it, one lock orders the writes.

The reader puts events into two bounded buffers (before and after the seal) and keeps
the failure, if any, which later calls raise. Only read() and write() are used on the
call: gRPC forbids mixing them with iteration. Independent of documents and of the order
of events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from stream2llm.api.errors import EventOrderError, InternalError
from stream2llm.api.events import Accepted, Event, Finished, OversizedDocument, Progress
from stream2llm.api.final_status import FinalStatus
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.buffer import EventBuffer
from stream2llm.client.credit import CreditGate
from stream2llm.client.status import cancelled_error, error_from_rpc
from stream2llm.client.translate import check_size, event_from

OnEvent = Callable[[Event], None]
# How long an answered session waits for the server's closing status before it
# cancels the RPC, so that the server does not count it as cancelled.
_END_GRACE_S = 1.0


class SessionRpc:
    """Starts reading at once; `close` ends it, whatever state it is in."""

    def __init__(
        self,
        call: Any,
        max_message_bytes: int,
        on_event: OnEvent | None,
        timeout_s: float | None = None,
    ) -> None:
        self.credit = CreditGate()
        self.before_seal = EventBuffer()
        self.after_seal = EventBuffer()
        self.accepted: Accepted | None = None
        self.progress = Progress()
        # At most one for each document that this session sent or named.
        self.oversized: list[OversizedDocument] = []
        self._call = call
        self._max_message_bytes = max_message_bytes
        self._on_event = on_event
        self._timeout_s = timeout_s
        self._sequence = 0
        self._writing = asyncio.Lock()
        self._admitted = asyncio.Event()
        self._finished = False
        self._failure: BaseException | None = None
        self._status = FinalStatus(call)
        self._reader = asyncio.create_task(self._read(), name="stream2llm-session-reader")

    # -- writing -----------------------------------------------------------------

    async def open(self, message: pb.OpenSession) -> None:
        """Sends the open; returns when the session is admitted."""
        await self._send(pb.StreamGenerateRequest(open=message))
        await self._admitted.wait()
        if self.accepted is None:
            self._raise_failure()

    async def append(self, message: pb.AppendContext) -> None:
        """Sends an append."""
        await self._send(pb.StreamGenerateRequest(append=message))

    async def update(self, message: pb.UpdateContext) -> None:
        """Sends an update."""
        await self._send(pb.StreamGenerateRequest(update=message))

    def check_seal(self, message: pb.SealContext) -> None:
        """Raises when the seal is too large to be sent."""
        check_size(pb.StreamGenerateRequest(seal=message), self._max_message_bytes)

    async def seal(self, message: pb.SealContext) -> None:
        """Sends the seal, and closes this side of the RPC."""
        self.before_seal.close(self._failure)
        await self._send(pb.StreamGenerateRequest(seal=message), last=True)

    async def close(self) -> None:
        """Ends the RPC; afterwards no task of this session is left."""
        if self._finished:
            await asyncio.wait({self._reader}, timeout=_END_GRACE_S)
        self._call.cancel()
        self._reader.cancel()
        await asyncio.wait({self._reader})

    async def _send(self, request: pb.StreamGenerateRequest, *, last: bool = False) -> None:
        async with self._writing:
            if self._reader.done() or self._failure is not None:
                self._raise_failure()
            request.sequence = self._sequence + 1
            check_size(request, self._max_message_bytes)
            self._sequence += 1
            try:
                await self._call.write(request)
                if last:
                    await self._call.done_writing()
            except (grpc.RpcError, asyncio.InvalidStateError):
                await asyncio.wait({self._reader})  # it gets the reason
                self._raise_failure()
            except asyncio.CancelledError:
                # gRPC raises it, too, where the reader has ended the RPC for its failure.
                task = asyncio.current_task()
                if self._failure is None or (task is not None and task.cancelling()):
                    raise
                self._raise_failure()

    def _raise_failure(self) -> NoReturn:
        raise self._failure or EventOrderError("the session has ended")

    # -- reading -----------------------------------------------------------------

    async def _read(self) -> None:
        try:
            await self._read_to_end()
            self._end(None if self._finished else _ended_early())
        except grpc.aio.AioRpcError as error:
            self._end(await self._failure_behind(error))
        except asyncio.CancelledError:
            self._end(cancelled_error())
            raise
        except Exception as error:  # from the caller's on_event, or an unknown event
            self._call.cancel()
            self._end(error)

    async def _read_to_end(self) -> None:
        while True:
            message = await self._call.read()
            if message is grpc.aio.EOF:
                return
            await self._take(event_from(message))

    async def _take(self, event: Event) -> None:
        if isinstance(event, Accepted):
            self.accepted = event
            self.credit.grant(event.credit_tokens)
            self._admitted.set()
        elif isinstance(event, Progress):
            self.progress = event
            self.credit.grant(event.credit_tokens)
        elif isinstance(event, OversizedDocument):
            self.oversized.append(event)
        elif isinstance(event, Finished):
            self._finished = True
        if self._on_event is not None:
            self._on_event(event)
        sealed = self.before_seal.closed
        await (self.after_seal if sealed else self.before_seal).put(event)

    async def _failure_behind(self, error: grpc.aio.AioRpcError) -> BaseException:
        true = await self._status.of(error)
        if true.code() is grpc.StatusCode.OK:
            return _ended_early()
        return error_from_rpc(true, self._timeout_s, self._waited_for())

    def _waited_for(self) -> str:
        """Returns what had not happened when a session ran out of time."""
        if self.accepted is None:
            return "the session was not admitted"
        if not self.before_seal.closed:
            return "the session was not sealed"
        return "the answer did not end"

    def _end(self, failure: BaseException | None) -> None:
        self._failure = failure
        self._admitted.set()
        self.credit.fail(failure or EventOrderError("the session has ended"))
        self.before_seal.close(failure)
        self.after_seal.close(failure)


def _ended_early() -> InternalError:
    message = "the server ended the session without an answer"
    return InternalError(message, reason="STREAM_ENDED_EARLY")
