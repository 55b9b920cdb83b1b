"""Bytes that are no message, sent to a real gRPC server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.serving.rpc.stream_writer import StreamWriter, failures_as_status
from stream2llm.serving.rpc.undecodable import RefuseUndecodable

pytestmark = pytest.mark.unit

NO_MESSAGE = b"\xff\xff"


class Servicer(worker_pb2_grpc.DecodeServiceServicer):
    """One RPC of each kind that we have."""

    async def PrefetchKv(self, requests: Any, context: Any) -> None:  # noqa: N802
        writer = StreamWriter(context)
        async with failures_as_status(context, writer, None, str):  # type: ignore[arg-type]
            async for _ in requests:
                await writer.write(worker_pb2.PrefetchKvResponse(num_blocks=1))

    async def Decode(self, request: Any, context: Any) -> None:  # noqa: N802
        await context.write(worker_pb2.DecodeResponse(local_tokens=len(request.prompt_token_ids)))

    async def ReleaseHandover(self, request: Any, context: Any) -> Any:  # noqa: N802
        return worker_pb2.ReleaseHandoverResponse()


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[RefuseUndecodable()])
    worker_pb2_grpc.add_DecodeServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.mark.parametrize("method", ["PrefetchKv", "Decode", "ReleaseHandover"])
async def test_they_are_the_senders_fault(channel: grpc.aio.Channel, method: str) -> None:
    call = channel.stream_stream(f"/stream2llm.v1.DecodeService/{method}")(timeout=30)
    await call.write(NO_MESSAGE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(caught.value)
    assert error is not None
    assert error.reason == "NO_MESSAGE"


async def test_messages_before_them_are_taken_and_others_go_through(
    channel: grpc.aio.Channel,
) -> None:
    call = channel.stream_stream("/stream2llm.v1.DecodeService/PrefetchKv")(timeout=30)
    await call.write(worker_pb2.PrefetchKvRequest().SerializeToString())
    assert worker_pb2.PrefetchKvResponse.FromString(await call.read()).num_blocks == 1
    await call.write(NO_MESSAGE)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    stub = worker_pb2_grpc.DecodeServiceStub(channel)
    request = worker_pb2.DecodeRequest(prompt_token_ids=[1, 2])
    assert [each.local_tokens async for each in stub.Decode(request, timeout=30)] == [2]
    assert await stub.ReleaseHandover(worker_pb2.ReleaseHandoverRequest(), timeout=30) is not None
