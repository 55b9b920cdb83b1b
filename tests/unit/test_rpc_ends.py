"""How an RPC ends: its true status, and a connection whose other end stands still."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from stream2llm.api.errors import OverloadedError
from stream2llm.api.final_status import FinalStatus
from stream2llm.api.grpc_options import (
    Keepalive,
    Options,
    channel_options,
    client_channel_options,
    server_options,
)
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.rpc import RpcFailedError, SessionRpc

# -- the true status, in each order in which grpc.aio may report it -----------------------


PROVISIONAL = (grpc.StatusCode.INTERNAL, "Internal error from Core")
TRUE = (grpc.StatusCode.RESOURCE_EXHAUSTED, "at most 60000 are allowed")


class ScriptedCall:
    """A call of grpc.aio whose statuses the test sets; callbacks get only the first."""

    def __init__(self) -> None:
        self._status: tuple[grpc.StatusCode, str] | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._ended = asyncio.Event()

    def set_status(self, status: tuple[grpc.StatusCode, str]) -> None:
        first, self._status = self._status is None, status
        if first:
            self._ended.set()
            for callback in self._callbacks:
                callback(self)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def done(self) -> bool:
        return self._status is not None

    def cancel(self) -> None:
        pass

    async def code(self) -> grpc.StatusCode:
        return self.now()[0]

    async def details(self) -> str:
        return self.now()[1]

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    async def read(self) -> Any:
        await self._ended.wait()
        raise self.error()

    async def write(self, _: Any) -> None:
        self.set_status(PROVISIONAL)
        try:
            raise self.error()
        finally:  # the server's own comes when the writer and the reader have failed
            asyncio.get_running_loop().call_later(0.02, self.set_status, TRUE)

    def now(self) -> tuple[grpc.StatusCode, str]:
        assert self._status is not None
        return self._status

    def error(self) -> grpc.aio.AioRpcError:
        code, details = self.now()
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize("order", [(PROVISIONAL, TRUE), (TRUE, PROVISIONAL)])
async def test_the_other_sides_status_is_told_in_either_order(order):
    call = ScriptedCall()
    status = FinalStatus(call)
    call.set_status(order[0])
    error = call.error()
    call.set_status(order[1])
    true = await status.of(error)
    assert (true.code(), true.details()) == TRUE


async def test_an_error_of_the_other_side_is_told_at_once():
    call = ScriptedCall()
    status = FinalStatus(call)
    call.set_status(TRUE)
    error = call.error()
    assert await status.of(error) is error


async def test_a_client_whose_write_fails_first_is_told_the_servers_reason():
    rpc = SessionRpc(ScriptedCall())
    assert not await rpc.write(pb.StreamGenerateRequest(append=pb.AppendContext()))
    with pytest.raises(RpcFailedError, match="at most 60000") as caught:
        await rpc.read(None, lambda: "")
    assert isinstance(caught.value.error, OverloadedError)


# -- a connection whose other end stands still --------------------------------------------


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


# -- a server at the address of one that has gone ------------------------------------------


async def served(address: str) -> tuple[grpc.aio.Server, str]:
    """Returns a server there that knows no method, and its address with the port it got."""
    server = grpc.aio.server(options=server_options(1))
    port = server.add_insecure_port(address)
    await server.start()
    return server, f"127.0.0.1:{port}"


async def code_of_a_call(channel: grpc.aio.Channel) -> grpc.StatusCode:
    return await channel.unary_unary("/any/method")(b"").code()


@pytest.mark.parametrize(
    "options",
    [channel_options(1), client_channel_options("127.0.0.1:1", 1)],
    ids=["peer", "client"],
)
async def test_a_new_channel_does_not_wait_for_what_an_older_one_has_lost(options: Options) -> None:
    """By default it would fail at once, by the older one's back-off, beside a server that serves."""
    lost, address = await served("127.0.0.1:0")
    await lost.stop(None)
    async with grpc.aio.insecure_channel(address, options=options) as older:
        assert await code_of_a_call(older) is grpc.StatusCode.UNAVAILABLE
        successor, _ = await served(address)
        async with grpc.aio.insecure_channel(address, options=options) as newer:
            assert await code_of_a_call(newer) is grpc.StatusCode.UNIMPLEMENTED
        await successor.stop(None)
