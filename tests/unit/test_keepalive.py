"""A connection whose other end stands still: its kernel takes bytes, it answers nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import grpc
import pytest

from stream2llm.api.grpc_options import (
    Keepalive,
    Options,
    channel_options,
    client_channel_options,
    server_options,
)

# gRPC lets a ping wait a minute for its answer, whatever the keepalive options say.
SHORTER_THAN_A_PINGS_DEFAULT_S = 45.0
NOTICED_S = 20.0

SERVER = """
import asyncio, grpc

async def answer_once(request, context):
    yield b"here"
    await asyncio.Event().wait()

class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_stream_rpc_method_handler(answer_once)

async def main():
    server = grpc.aio.server(handlers=[Handler()], options=[("grpc.http2.max_ping_strikes", 0)])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


async def test_a_process_that_stands_still_ends_its_calls() -> None:
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, stdout=pipe)
    try:
        address = f"127.0.0.1:{int(await server.stdout.readline())}"
        options = Keepalive(after_ms=100, timeout_ms=2000).options()
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            call = channel.unary_stream("/any/method")(b"")
            assert await call.read() == b"here"
            os.kill(server.pid, signal.SIGSTOP)
            async with asyncio.timeout(SHORTER_THAN_A_PINGS_DEFAULT_S):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        server.kill()
        await server.wait()


def seconds_until_noticed(options: Options) -> float:
    values = dict(options)
    assert values["grpc.http2.ping_timeout_ms"] == values["grpc.keepalive_timeout_ms"]
    return (
        int(values["grpc.keepalive_time_ms"]) + int(values["grpc.http2.ping_timeout_ms"])
    ) / 1000


def test_our_own_parts_notice_it_within_the_time_that_the_docs_say() -> None:
    assert seconds_until_noticed(channel_options(1)) <= NOTICED_S
    assert seconds_until_noticed(server_options(1, for_peers=True)) <= NOTICED_S


def test_clients_and_routers_ask_less_often() -> None:
    assert seconds_until_noticed(client_channel_options("router:50051", 1)) == 40.0
    assert seconds_until_noticed(server_options(1)) == 40.0


def test_no_server_ends_a_connection_because_of_a_peers_pings() -> None:
    for options in (server_options(1), server_options(1, for_peers=True)):
        assert dict(options)["grpc.http2.max_ping_strikes"] == 0
