"""A status follows every write, also one whose writer was cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.rpc.stream_writer import StreamWriter, failures_as_status

pytestmark = pytest.mark.unit

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
