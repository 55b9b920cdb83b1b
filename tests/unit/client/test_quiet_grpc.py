"""Commands and examples are not interrupted by what gRPC's core logs of peers that stop."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# A client with an RPC under way, whose server stops: gRPC logs "Got goaway" by default.
A_SERVER_STOPS = """
import asyncio
import grpc

class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(self.answer)

    async def answer(self, requests, context):
        yield b""
        async for _ in requests:
            pass

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/a.Service/Method")()
        await call.read()
        await server.stop(None)
        print(await call.code())

asyncio.run(main())
"""


def logged(imported: str, verbosity: str | None = None) -> str:
    """What a process writes to stderr that imports it, and then sees a server stop."""
    environment = {key: os.environ[key] for key in os.environ if not key.startswith("GRPC_")}
    if verbosity is not None:
        environment["GRPC_VERBOSITY"] = verbosity
    process = subprocess.run(
        [sys.executable, "-c", f"import {imported}\n{A_SERVER_STOPS}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "StatusCode.UNAVAILABLE" in process.stdout
    return process.stderr


@pytest.mark.parametrize("module", ["stream2llm.cli.main", "examples.command"])
def test_a_command_prints_nothing_of_servers_that_stop(module: str) -> None:
    assert logged(module) == ""


def test_grpc_logs_them_where_its_own_variable_says_so() -> None:
    assert "goaway" in logged("stream2llm.cli.main", "INFO")
