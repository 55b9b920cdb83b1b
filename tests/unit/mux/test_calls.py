"""Calls that share one stream, over real gRPC: each is as if it were alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest

from router.status import NeverArrivedError, worker_error
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.rpc_status import from_rpc_error, to_status
from stream2llm.api.v1 import worker_pb2_grpc
from stream2llm.api.v1.worker_pb2 import CallOpening, ConnectRequest, Frame
from stream2llm.serving.mux.call import Call
from stream2llm.serving.mux.channel import MuxChannel
from stream2llm.serving.mux.flow import WINDOW_BYTES
from stream2llm.serving.mux.service import MultiplexService
from tests.polling import eventually
from tests.router_ring import soon

MAX_BYTES = 1 << 20
PATH = "/s/m"
Handler = Callable[[Any, Any], Awaitable[None]]


async def echo(requests: Any, context: Any) -> None:
    """Says what it hears."""
    async for request in requests:
        await context.write(request)


class Worker:
    """A process that serves one method, with bytes as they are for messages."""

    def __init__(self, handler: Handler) -> None:
        self._service: Any = MultiplexService(MAX_BYTES)
        method = grpc.stream_stream_rpc_method_handler(handler, bytes, bytes)
        self._service.add_registered_method_handlers("s", {"m": method})
        self._server: Any = None
        self.port = 0

    async def start(self) -> None:
        """Listens, at the same port as before if it has been started before."""
        self._server = grpc.aio.server()
        worker_pb2_grpc.add_MultiplexServiceServicer_to_server(self._service, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        # Tries again at once, for a worker that comes back.
        options = [("grpc.initial_reconnect_backoff_ms", 100)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options) as channel:
            yield channel

    @asynccontextmanager
    async def calls(self, path: str = PATH) -> AsyncIterator[Callable[..., Call]]:
        async with self.channel() as channel, aclosing(MuxChannel(channel, MAX_BYTES)) as calls:
            yield calls.stream_stream(path, bytes, bytes)


@asynccontextmanager
async def a_worker(handler: Handler = echo) -> AsyncIterator[Worker]:
    worker = Worker(handler)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


async def failure(call: Call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await soon(anext(call))
    return caught.value


# -- what a call is --------------------------------------------------------------------


async def test_messages_come_in_order_and_whole_and_then_the_end() -> None:
    sizes = [0, 1, 70_000, 3, MAX_BYTES]
    async with a_worker() as worker, worker.calls() as begin:
        call = begin()

        async def send() -> None:
            for size in sizes:
                await call.write(bytes(size))
            await call.done_writing()

        sending = asyncio.create_task(send())
        assert [len(each) async for each in call] == sizes
        await sending
        assert call.final.code() is grpc.StatusCode.OK


async def test_a_handler_has_the_metadata_and_gives_its_own() -> None:
    async def handler(_requests: Any, context: Any) -> None:
        assert ("traceparent", "00-1") in context.invocation_metadata()
        await context.send_initial_metadata((("held", "1"),))
        await context.abort_with_status(to_status(InvalidRequestError("no", field="f")))

    async with a_worker(handler) as worker, worker.calls() as begin:
        call = begin(metadata=(("traceparent", "00-1"),))
        assert "held" in await soon(call.initial_metadata())
        ours = from_rpc_error(await failure(call))
        assert isinstance(ours, InvalidRequestError)
        assert ours.field == "f"


async def test_an_exception_of_a_handler_is_as_grpc_has_it() -> None:
    async def handler(_requests: Any, _context: Any) -> None:
        raise KeyError("a bug")

    async with a_worker(handler) as worker, worker.calls() as begin:
        final = await failure(begin())
        assert final.code() is grpc.StatusCode.UNKNOWN
        assert final.details().startswith("Unexpected <class 'KeyError'>")


async def test_a_method_that_is_not_there_is_not_implemented() -> None:
    async with a_worker() as worker, worker.calls("/s/other") as begin:
        assert (await failure(begin())).code() is grpc.StatusCode.UNIMPLEMENTED


# -- one among others ----------------------------------------------------------------------


async def test_a_call_that_is_not_read_holds_up_itself_alone() -> None:
    num_written = 0

    async def handler(requests: Any, context: Any) -> None:
        nonlocal num_written
        async for request in requests:
            if request == b"talk":
                while True:
                    await context.write(bytes(1000))
                    num_written += 1
            await context.write(request)

    async with a_worker(handler) as worker, worker.calls() as begin:
        slow, other = begin(), begin()
        await slow.write(b"talk")
        for number in range(200):
            await other.write(b"%d" % number)
            assert await soon(anext(other)) == b"%d" % number
        most = WINDOW_BYTES // 1000 + 1
        assert 0 < num_written <= most
        before = num_written
        for _ in range(most):
            await soon(anext(slow))
        await eventually(_now(lambda: num_written), lambda now: now > before, 30)


def _now(value: Callable[[], int]) -> Callable[[], Awaitable[int]]:
    async def get() -> int:
        return value()

    return get


async def test_a_writer_waits_for_a_handler_that_does_not_read() -> None:
    may_read = asyncio.Event()

    async def handler(requests: Any, _context: Any) -> None:
        await may_read.wait()
        async for _ in requests:
            pass

    async with a_worker(handler) as worker, worker.calls() as begin:
        call = begin()
        await call.write(bytes(WINDOW_BYTES))
        writing = asyncio.create_task(call.write(b"more"))
        other = begin()
        await other.write(b"passes")
        assert not writing.done()
        may_read.set()
        await soon(writing)


async def test_a_cancelled_call_ends_its_handler_alone() -> None:
    ended: list[bytes] = []

    async def handler(requests: Any, context: Any) -> None:
        name = await anext(requests)
        try:
            await context.write(name)
            async for request in requests:
                await context.write(request)
        except asyncio.CancelledError:
            assert context.cancelled()
            ended.append(name)
            raise

    async with a_worker(handler) as worker, worker.calls() as begin:
        one, other = begin(), begin()
        for call, name in ((one, b"one"), (other, b"other")):
            await call.write(name)
            assert await soon(anext(call)) == name
        reading = asyncio.create_task(anext(one))
        assert one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(reading)
        await other.write(b"still here")
        assert await soon(anext(other)) == b"still here"
        await eventually(_now(lambda: len(ended)), bool, 30)
        assert ended == [b"one"]
        assert not one.cancel()


async def test_a_message_that_is_too_long_ends_its_call_alone() -> None:
    async with a_worker() as worker, worker.calls() as begin:
        long, other = begin(), begin()
        await long.write(bytes(MAX_BYTES + 1))
        assert (await failure(long)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await other.write(b"still here")
        assert await soon(anext(other)) == b"still here"


# -- the end of the stream ----------------------------------------------------------------


async def test_a_lost_worker_ends_every_call_and_the_next_one_finds_its_successor() -> None:
    async with a_worker() as worker, worker.calls() as begin:
        calls = [begin() for _ in range(3)]
        for call in calls:
            await call.write(b"here")
            assert await soon(anext(call)) == b"here"
        await worker.stop()
        for call in calls:
            error = worker_error(await failure(call), "w")
            assert error.reason == "WORKER_LOST"
            assert not isinstance(error, NeverArrivedError)
        error = worker_error(await failure(begin()), "w")
        assert isinstance(error, NeverArrivedError)
        await worker.start()

        async def is_there() -> bool:
            call = begin()
            try:
                await call.write(b"again")
                return await anext(call) == b"again"
            except grpc.aio.AioRpcError:
                return False

        await eventually(is_there, bool, 30)


async def test_a_router_that_leaves_cancels_every_handler() -> None:
    ended = []

    async def handler(requests: Any, context: Any) -> None:
        try:
            await echo(requests, context)
        finally:
            ended.append(context.cancelled())

    async with a_worker(handler) as worker:
        async with worker.calls() as begin:
            for _ in range(3):
                call = begin()
                await call.write(b"here")
                assert await soon(anext(call)) == b"here"
        await eventually(_now(lambda: len(ended)), lambda number: number == 3, 30)
        assert all(ended)
    assert call.done()


# -- a stream that breaks the protocol -------------------------------------------------------

OPENING = CallOpening(method=PATH)


@pytest.mark.parametrize(
    "frames",
    [
        [Frame(call_id=1, message=b"of no call")],
        [Frame(call_id=0, opening=OPENING)],
        [Frame(call_id=1, opening=OPENING), Frame(call_id=1, opening=OPENING)],
        [Frame(call_id=2, opening=OPENING), Frame(call_id=1, opening=OPENING)],
        [Frame(call_id=1, opening=OPENING), Frame(call_id=2, cancel={})],
        [
            Frame(call_id=1, opening=OPENING),
            Frame(call_id=1, half_close={}),
            Frame(call_id=1, message=b"behind the end"),
        ],
        [Frame(call_id=1, opening=OPENING), Frame(call_id=1, end={})],
        [Frame(call_id=1, opening=OPENING), Frame(call_id=1)],
        [Frame(call_id=1, opening=OPENING), Frame(call_id=1, credit_bytes=2**40)],
    ],
    ids=lambda frames: " ".join(str(frame.WhichOneof("kind")) for frame in frames),
)
async def test_it_is_ended_as_its_senders_fault(frames: list[Frame]) -> None:
    async def handler(_requests: Any, _context: Any) -> None:
        await asyncio.Event().wait()

    async with a_worker(handler) as worker, worker.channel() as channel:
        stub: Any = worker_pb2_grpc.MultiplexServiceStub(channel)
        stream = stub.Connect()
        await stream.write(ConnectRequest(frames=frames))
        assert await soon(stream.code()) is grpc.StatusCode.INVALID_ARGUMENT


async def test_frames_that_cross_the_end_of_their_call_are_no_offence() -> None:
    async def handler(_requests: Any, context: Any) -> None:
        await context.write(b"that was all")

    async with a_worker(handler) as worker, worker.channel() as channel:
        stub: Any = worker_pb2_grpc.MultiplexServiceStub(channel)
        stream = stub.Connect()
        for call_id in (1, 2):
            await stream.write(ConnectRequest(frames=[Frame(call_id=call_id, opening=OPENING)]))
            kinds: list[Any] = []
            while "end" not in kinds:
                batch = await soon(stream.read())
                kinds += [each.WhichOneof("kind") for each in batch.frames]
            late = [Frame(call_id=1, message=b"late"), Frame(call_id=1, cancel={})]
            await stream.write(ConnectRequest(frames=late))
        stream.cancel()
