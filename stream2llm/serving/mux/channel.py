"""Opens calls that share one gRPC stream; stubs are made from it as from a grpc.aio channel.

The stream begins with the first call, and again with the next call after it has broken: gRPC then
connects, or fails at once while it waits to try again. When it breaks, each of its calls ends with
its status, but for those whose opening was never handed to gRPC, whose status says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from stream2llm.api.final_status import FinalStatus
from stream2llm.api.v1.worker_pb2 import CallOpening, ConnectRequest, Frame
from stream2llm.api.v1.worker_pb2_grpc import MultiplexServiceStub
from stream2llm.serving.mux.call import Call
from stream2llm.serving.mux.flow import ProtocolError
from stream2llm.serving.mux.sender import Sender
from stream2llm.serving.mux.statuses import cancelled_here, entries, status

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]


class MuxChannel:
    """The calls of one process to one worker."""

    def __init__(self, channel: Any, max_message_bytes: int) -> None:
        """`channel` is what stubs of plain RPCs are made from; messages may be so long at most."""
        self._connect = MultiplexServiceStub(channel).Connect
        self._max_message_bytes = max_message_bytes
        self._connection: _Connection | None = None
        self._connections: set[_Connection] = set()

    def stream_stream(
        self, path: str, request_serializer: Encode, response_deserializer: Decode, **_: Any
    ) -> Callable[..., Call]:
        """As the channel's."""
        return partial(self._begin, path, request_serializer, response_deserializer, None)

    def unary_stream(
        self, path: str, request_serializer: Encode, response_deserializer: Decode, **_: Any
    ) -> Callable[..., Call]:
        """As the channel's."""
        return partial(self._begin, path, request_serializer, response_deserializer)

    def _begin(
        self, path: str, encode: Encode, decode: Decode, request: Any, *, metadata: Any = None
    ) -> Call:
        if self._connection is None or self._connection.is_over:
            self._connection = _Connection(self._connect(), self._max_message_bytes)
            self._connections.add(self._connection)
            self._connection.running.add_done_callback(partial(self._forget, self._connection))
        return self._connection.begin(path, encode, decode, metadata, request)

    def _forget(self, connection: _Connection, _: object) -> None:
        self._connections.discard(connection)

    async def aclose(self) -> None:
        """Ends the stream and its calls, as cancelled from here."""
        for connection in list(self._connections):
            await connection.close()


class _Connection:
    """One stream, from its beginning to its end."""

    def __init__(self, stream: Any, max_message_bytes: int) -> None:
        self._stream = stream
        self._max_message_bytes = max_message_bytes
        self._final = FinalStatus(stream)
        self._sender = Sender(self._write, max_message_bytes)
        self._calls: dict[int, Call] = {}
        self._num_calls = 0
        # No call can be opened on it any more.
        self.is_over = False
        self.running = asyncio.create_task(self._run())

    def begin(self, path: str, encode: Encode, decode: Decode, metadata: Any, request: Any) -> Call:
        self._num_calls += 1
        call_id = self._num_calls
        call = Call(call_id, self._sender, self._max_message_bytes, encode, decode)
        self._calls[call_id] = call
        call.add_done_callback(self._forget)
        call.begin(CallOpening(method=path, metadata=entries(metadata)), request)
        return call

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.wait({self.running})

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.call_id, None)

    async def _run(self) -> None:
        sending = asyncio.create_task(self._send())
        broken = status(grpc.StatusCode.INTERNAL, "the router's own fault")
        try:
            broken = await self._until_broken()
        except asyncio.CancelledError:  # here, or with the whole channel
            broken = cancelled_here()
            raise
        finally:
            self.is_over = True
            sending.cancel()
            self._stream.cancel()
            for call in list(self._calls.values()):
                call.lost(broken)

    async def _write(self, frames: list[Frame]) -> None:
        await self._stream.write(ConnectRequest(frames=frames))

    async def _send(self) -> None:
        # Whatever ends the stream, its reader hears of it.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._sender.run()

    async def _until_broken(self) -> grpc.aio.AioRpcError:
        """Passes the frames to their calls; returns the status that the stream ends with."""
        try:
            async for batch in self._stream:
                for frame in batch.frames:
                    self._receive(frame)
        except grpc.aio.AioRpcError as error:
            self.is_over = True
            return await self._final.of(error)
        except ProtocolError as error:
            return status(grpc.StatusCode.INTERNAL, f"the worker breaks the protocol: {error}")
        return status(grpc.StatusCode.UNAVAILABLE, "the worker has closed the connection")

    def _receive(self, frame: Frame) -> None:
        call = self._calls.get(frame.call_id)
        if call is not None:  # otherwise it has ended here meanwhile
            call.receive(frame, frame.WhichOneof("kind"))
        elif not 0 < frame.call_id <= self._num_calls:
            raise ProtocolError(f"a frame for call {frame.call_id}, which was not opened")
