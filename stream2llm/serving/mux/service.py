"""`MultiplexService`: serves the calls of one stream as a grpc.aio server serves RPCs.

Servicers are added to it by their generated functions, as they are added to a server. Its own
server, in front of it, is the one that asks for credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from stream2llm.api.errors import InvalidRequestError, describe
from stream2llm.api.v1.worker_pb2 import ConnectRequest, ConnectResponse, Frame
from stream2llm.api.v1.worker_pb2_grpc import MultiplexServiceServicer
from stream2llm.serving.mux.flow import ProtocolError
from stream2llm.serving.mux.sender import Sender
from stream2llm.serving.mux.served_call import ServedCall
from stream2llm.serving.rpc.stream_writer import PeerGoneError, StreamWriter, failures_as_status

_log = logging.getLogger(__name__)


class MultiplexService(MultiplexServiceServicer):
    """Serves streams of one worker."""

    def __init__(self, max_message_bytes: int) -> None:
        """Longer messages end their calls."""
        self._max_message_bytes = max_message_bytes
        self._handlers: dict[str, Any] = {}

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """For the generated functions that add a servicer to a server."""
        self._handlers |= {f"/{service}/{name}": each for name, each in handlers.items()}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """For the same functions, which register the methods as well."""

    async def Connect(
        self, requests: AsyncIterator[ConnectRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """Serves the calls of one router until it leaves."""
        writer = StreamWriter(context)
        async with failures_as_status(context, writer, _log, describe):
            await _Connection(self._handlers, writer, self._max_message_bytes).run(requests)


class _Connection:
    """One stream, from its beginning to its end."""

    def __init__(
        self, handlers: Mapping[str, Any], writer: StreamWriter, max_message_bytes: int
    ) -> None:
        self._handlers = handlers
        self._writer = writer
        self._sender = Sender(self._write, max_message_bytes)
        self._max_message_bytes = max_message_bytes
        self._calls: dict[int, ServedCall] = {}
        self._last_id = 0

    async def run(self, requests: AsyncIterator[ConnectRequest]) -> None:
        """Returns when the router has left; raises InvalidRequestError when it breaks the protocol."""
        sending = asyncio.create_task(self._send())
        try:
            async for batch in requests:
                for frame in batch.frames:
                    self._receive(frame)
        except ProtocolError as error:
            raise InvalidRequestError(str(error), reason="BAD_FRAME") from error
        finally:
            sending.cancel()
            await self._break_off()

    async def _write(self, frames: list[Frame]) -> None:
        await self._writer.write(ConnectResponse(frames=frames))

    async def _send(self) -> None:
        with contextlib.suppress(PeerGoneError):  # gRPC is about to cancel the handler
            await self._sender.run()

    async def _break_off(self) -> None:
        """Cancels what runs, and waits for it: it frees what it holds."""
        calls = list(self._calls.values())
        for call in calls:
            call.break_off()
        if calls:
            await asyncio.wait([call.task for call in calls])

    def _receive(self, frame: Frame) -> None:
        kind = frame.WhichOneof("kind")
        if kind == "opening":
            self._open(frame)
        elif (call := self._calls.get(frame.call_id)) is not None:
            call.receive(frame, kind)
        elif not 0 < frame.call_id <= self._last_id:
            raise ProtocolError(f"a frame for call {frame.call_id}, which was not opened")

    def _open(self, frame: Frame) -> None:
        if frame.call_id <= self._last_id:
            raise ProtocolError(f"call {frame.call_id} is opened behind call {self._last_id}")
        self._last_id = frame.call_id
        call = ServedCall(frame.call_id, frame.opening, self._sender, self._max_message_bytes)
        self._calls[frame.call_id] = call
        call.begin(self._handlers.get(frame.opening.method))
        call.task.add_done_callback(lambda _: self._calls.pop(call.call_id, None))
