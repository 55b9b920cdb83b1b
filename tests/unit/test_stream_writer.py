"""A status follows every write, also one whose writer was cancelled; and bytes that are no message."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.serving.rpc.stream_writer import StreamWriter, failures_as_status
from stream2llm.serving.rpc.undecodable import RefuseUndecodable

# More than gRPC sends to a peer that does not read: the write is under way until it does.
TOO_LARGE_TO_BUFFER = b"x" * (1 << 23)
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
TIMEOUT_S = 60.0
Body = Callable[[StreamWriter], Awaitable[None]]


async def cancelled_while_it_writes(writer: StreamWriter) -> None:
    """A task of the handler that ends while its message is on the way."""
    task = asyncio.create_task(writer.write(TOO_LARGE_TO_BUFFER))
    await asyncio.sleep(0)  # the write begins
    task.cancel()
    await asyncio.wait({task})


async def and_fails(writer: StreamWriter) -> None:
    await cancelled_while_it_writes(writer)
    raise InvalidRequestError("no")


@asynccontextmanager
async def a_call(body: Body) -> AsyncIterator[Any]:
    """An RPC whose handler has that body, with bytes as they are for messages."""

    async def handle(_requests: Any, context: Any) -> None:
        writer = StreamWriter(context)
        async with failures_as_status(context, writer, logging.getLogger(), str):
            await body(writer)

    server = grpc.aio.server(options=OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        yield channel.stream_stream("/s/m")(timeout=TIMEOUT_S)
    await server.stop(None)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (cancelled_while_it_writes, grpc.StatusCode.OK),
        (and_fails, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_handler_that_ends_while_a_message_is_written_has_its_status_sent(
    body: Body, code: grpc.StatusCode
) -> None:
    async with a_call(body) as call:
        assert await call.read() == TOO_LARGE_TO_BUFFER
        assert await call.code() == code


NO_MESSAGE = b"\xff\xff"


class Servicer(worker_pb2_grpc.DecodeServiceServicer, worker_pb2_grpc.HandoverServiceServicer):
    """One RPC of each kind that we have."""

    async def PrefetchKv(self, requests: Any, context: Any) -> None:  # noqa: N802
        writer = StreamWriter(context)
        async with failures_as_status(context, writer, None, str):  # type: ignore[arg-type]
            async for _ in requests:
                await writer.write(worker_pb2.PrefetchKvResponse(num_blocks=1))

    async def Decode(self, request: Any, context: Any) -> None:  # noqa: N802
        await context.write(worker_pb2.DecodeResponse(local_tokens=len(request.token_ids)))

    async def ReleaseHandover(self, request: Any, context: Any) -> Any:  # noqa: N802
        return worker_pb2.ReleaseHandoverResponse()


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[RefuseUndecodable()])
    worker_pb2_grpc.add_DecodeServiceServicer_to_server(Servicer(), server)
    worker_pb2_grpc.add_HandoverServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.mark.parametrize(
    "method",
    ["DecodeService/PrefetchKv", "DecodeService/Decode", "HandoverService/ReleaseHandover"],
)
async def test_they_are_the_senders_fault(channel: grpc.aio.Channel, method: str) -> None:
    call = channel.stream_stream(f"/stream2llm.v1.{method}")(timeout=30)
    await call.write(NO_MESSAGE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert from_rpc_error(caught.value).reason == "NO_MESSAGE"


async def test_messages_before_them_are_taken_and_others_go_through(
    channel: grpc.aio.Channel,
) -> None:
    call = channel.stream_stream("/stream2llm.v1.DecodeService/PrefetchKv")(timeout=30)
    await call.write(worker_pb2.PrefetchKvRequest().SerializeToString())
    assert worker_pb2.PrefetchKvResponse.FromString(await call.read()).num_blocks == 1
    await call.write(NO_MESSAGE)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    stub = worker_pb2_grpc.DecodeServiceStub(channel)
    request = worker_pb2.DecodeRequest(token_ids=b"12")
    assert [each.local_tokens async for each in stub.Decode(request, timeout=30)] == [2]
    stub = worker_pb2_grpc.HandoverServiceStub(channel)
    assert await stub.ReleaseHandover(worker_pb2.ReleaseHandoverRequest(), timeout=30) is not None
