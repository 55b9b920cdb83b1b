"""A client belongs to one event loop and one process: it works there, and says so elsewhere."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from stream2llm.client import AsyncClient


async def ask(client: AsyncClient) -> str:
    async with asyncio.timeout(20), client.session(timeout_s=10) as session:
        await session.append("one")
        return (await session.answer()).text


def test_a_client_made_before_the_loop_works_in_it(threaded_router):
    client = AsyncClient(threaded_router.fake.address)

    async def use() -> tuple[str, str]:
        async with client:
            info = await client.model_info()
            return info.model, await ask(client)

    assert asyncio.run(use()) == ("fake", "one two three")


def test_a_client_in_a_second_loop_says_so(threaded_router):
    client = AsyncClient(threaded_router.fake.address)
    assert asyncio.run(ask(client)) == "one two three"
    for call in (ask, AsyncClient.model_info, lambda client: client.generate("x").answer()):
        with pytest.raises(RuntimeError, match=r"first call, which has ended: make one client"):
            asyncio.run(call(client))
    asyncio.run(client.close())
    with pytest.raises(RuntimeError, match="the client is closed"):
        asyncio.run(ask(client))


FORKS = """
import multiprocessing, signal, sys, time
from functools import partial
from stream2llm.client import AsyncClient, Client
from stream2llm.client.connection import grpc_runs

def ask(address):
    with Client(address) as client:
        return client.generate("x").answer().text

def tried(what, call):
    try:
        print(what, call(), flush=True)
    except RuntimeError as error:
        print(what, str(error).partition(":")[0], flush=True)

def child(what, *calls):
    # Ends by itself if a call hangs.
    signal.alarm(20)
    for number, call in enumerate(calls):
        tried(f"{what} {number}", call)

def in_child(method, *args):
    process = multiprocessing.get_context(method).Process(target=child, args=args)
    process.start()
    process.join()
    print("exit code", process.exitcode, flush=True)

if __name__ == "__main__":
    address = sys.argv[1]
    new, new_async = partial(ask, address), partial(AsyncClient, address)
    ask(address)
    while grpc_runs():  # its core's threads end a moment later
        time.sleep(0.01)
    in_child("fork", "closed and gone", new)
    with Client(address) as client:
        tried("parent", lambda: client.model_info().model)
        tried("gRPC runs", grpc_runs)
        in_child("fork", "live", new, new_async, client.model_info, client.close)
        in_child("spawn", "spawned", new)
        tried("parent", lambda: client.model_info().model)
        kept = client._client._connections._connections[0]._stub
    in_child("fork", "closed but kept", new)
"""
REFUSED = (
    "this process was forked from one in which gRPC was running, and gRPC does not survive that"
)


def test_a_process_that_forks_with_a_live_client_says_so_in_the_child(
    threaded_router, tmp_path: Path
):
    script = tmp_path / "forks.py"
    script.write_text(FORKS)
    done = subprocess.run(
        [sys.executable, str(script), threaded_router.fake.address],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.stdout.splitlines() == [
        "closed and gone 0 one two three",
        "exit code 0",
        "parent fake",
        "gRPC runs True",
        f"live 0 {REFUSED}",
        f"live 1 {REFUSED}",
        "live 2 the client belongs to the process that made it, of which this one is a fork",
        "live 3 None",
        "exit code 0",
        "spawned 0 one two three",
        "exit code 0",
        "parent fake",
        f"closed but kept 0 {REFUSED}",
        "exit code 0",
    ], done.stderr
