"""What a gateway costs beside a router, and in its process: CPU time a token, and memory.

    python -m tests.gateway_placement [--rounds 10] [--streams 8] [--tokens 200]

The client and the workers, without engines, are in this process; the router and the gateway are
in two others, or together in one. All placements stream the same chats in turn, in blocks of
random order. Counted are CPU time, all threads, and resident memory of the processes that a
placement has, so that what the machine does besides hits all. "router alone" is the same sessions
over gRPC.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from router.server import Router
from stream2llm.client import AsyncClient, ChatMessage, SamplingParameters
from stream2llm.gateway.server import Gateway
from stream2llm.serving.settings.gateway_spec import GatewaySpec
from stream2llm.serving.settings.router_spec import RouterSpec
from stream2llm.serving.settings.worker_spec import ClusterView
from tests.fake_workers import MAX_MODEL_LEN, Brain, FakeWorker
from tests.tiny_model import make_tiny_model

_SPAWN = multiprocessing.get_context("spawn")
_TEXT = "hello"


@dataclass
class Host:
    """A process with a router, a gateway, or both."""

    pipe: Connection
    grpc_address: str
    http_address: str

    def used(self) -> tuple[float, int]:
        """Seconds of CPU time so far, and bytes of memory."""
        self.pipe.send("used")
        cpu_s, num_bytes = self.pipe.recv()
        return cpu_s, num_bytes


@dataclass
class Placement:
    """Where router and gateway are, and what was measured there."""

    # The router's first.
    hosts: list[Host]
    # Seconds a token, of all hosts and of the first.
    cpu_s: list[float] = field(default_factory=list)
    router_cpu_s: list[float] = field(default_factory=list)
    num_bytes: int = 0

    @property
    def http_address(self) -> str:
        """Empty: it is asked over gRPC."""
        return self.hosts[-1].http_address


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.gateway_placement")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--streams", type=int, default=8, help="answers at the same time")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of an answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder))
        placements = asyncio.run(_measure(model, options))
    print("placement: µs of CPU a token (quartiles), in the router's process, MB of memory")
    for name, placement in placements.items():
        low, middle, high = (1e6 * each for each in statistics.quantiles(placement.cpu_s, n=4))
        megabytes = placement.num_bytes / 1e6
        at_router = 1e6 * statistics.median(placement.router_cpu_s)
        print(f"  {name}: {middle:.0f} ({low:.0f} to {high:.0f}), {at_router:.0f}, {megabytes:.0f}")


# -- the measurement -----------------------------------------------------------------------


async def _measure(model: Path, options: argparse.Namespace) -> dict[str, Placement]:
    brain = Brain([50] * MAX_MODEL_LEN)
    workers = [FakeWorker(f"{role}-0", role, brain) for role in ("prefill", "decode")]
    addresses = tuple([await worker.start() for worker in workers])
    async with AsyncExitStack() as stack:
        placements = await asyncio.to_thread(_placements, model, addresses, stack)
        for number in range(options.rounds + 1):
            for placement in random.Random(number).sample([*placements.values()], 3):
                used_s = await _block(placement, options)
                if number:  # the first round warms up
                    num_tokens = options.streams * options.tokens
                    placement.cpu_s.append(sum(used_s) / num_tokens)
                    placement.router_cpu_s.append(used_s[0] / num_tokens)
            for worker in workers:
                worker.prefill.records.clear()
                worker.decode.requests.clear()
    for worker in workers:
        await worker.kill()
    return placements


async def _block(placement: Placement, options: argparse.Namespace) -> list[float]:
    """Streams some answers at once; returns the CPU time that they took of each host."""
    before = [host.used() for host in placement.hosts]
    streams = range(options.streams)
    if placement.http_address:
        async with aiohttp.ClientSession(f"http://{placement.http_address}") as http:
            await asyncio.gather(*(_over_http(http, options.tokens) for _ in streams))
    else:
        async with AsyncClient(placement.hosts[0].grpc_address) as client:
            await asyncio.gather(*(_over_grpc(client, options.tokens) for _ in streams))
    after = [host.used() for host in placement.hosts]
    placement.num_bytes = sum(num_bytes for _, num_bytes in after)
    return [now[0] - then[0] for now, then in zip(after, before, strict=True)]


async def _over_http(http: aiohttp.ClientSession, num_tokens: int) -> None:
    body = {
        "messages": [{"role": "user", "content": _TEXT}],
        "max_tokens": num_tokens,
        "temperature": 0,
        "stream": True,
    }
    async with http.post("/v1/chat/completions", json=body) as response:
        assert (await response.read()).endswith(b"[DONE]\n\n")


async def _over_grpc(client: AsyncClient, num_tokens: int) -> None:
    sampling = SamplingParameters(max_tokens=num_tokens, temperature=0.0)
    events = client.generate([ChatMessage("user", _TEXT)], sampling=sampling)
    async for _ in events:
        pass


# -- the processes -------------------------------------------------------------------------


def _placements(
    model: Path, workers: tuple[Any, ...], stack: AsyncExitStack
) -> dict[str, Placement]:
    router = _started(stack, model, workers, "", ("router",))
    gateway = _started(stack, model, workers, router.grpc_address, ("gateway",))
    both = _started(stack, model, workers, "", ("router", "gateway"))
    return {
        "router alone, over gRPC": Placement([router]),
        "gateway beside the router": Placement([router, gateway]),
        "gateway in the router's process": Placement([both]),
    }


def _started(
    stack: AsyncExitStack,
    model: Path,
    workers: tuple[Any, ...],
    router: str,
    parts: tuple[str, ...],
) -> Host:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_host, args=(theirs, model, workers, router, parts))
    process.start()
    stack.callback(process.join)
    stack.callback(ours.send, None)
    return Host(ours, *ours.recv())


def _host(
    pipe: Connection, model: Path, workers: tuple[Any, ...], router: str, parts: tuple[str, ...]
) -> None:
    asyncio.run(_serve(pipe, model, workers, router, parts))


async def _serve(
    pipe: Connection, model: Path, workers: tuple[Any, ...], router: str, parts: tuple[str, ...]
) -> None:
    http_address = ""
    async with AsyncExitStack() as stack:
        if "router" in parts:
            served = Router(_router_spec(model))
            router = (await served.start()).grpc_address
            stack.push_async_callback(served.stop)
            served.set_view(ClusterView(1, workers))
        if "gateway" in parts:
            gateway = Gateway(GatewaySpec("gateway-0", "127.0.0.1", 0, str(model)))
            http_address = (await gateway.start()).http_address
            stack.push_async_callback(gateway.stop)
            gateway.set_view(ClusterView(1, workers, routers=(router,)))
        pipe.send((router, http_address))
        while await asyncio.to_thread(pipe.recv) is not None:
            pipe.send((time.process_time(), psutil.Process().memory_info().rss))


def _router_spec(model: Path) -> RouterSpec:
    return RouterSpec(
        router_id="router-0",
        host="127.0.0.1",
        port=0,
        metrics_port=0,
        model_name="tiny",
        model_path=str(model),
        max_model_len=MAX_MODEL_LEN,
        handover="at_seal",
        drain_timeout_s=1.0,
    )


if __name__ == "__main__":
    main()
