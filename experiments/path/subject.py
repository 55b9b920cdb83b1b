"""The process that is measured: a router as in production, and the relays beside it.

Only its CPU time counts, of all threads but those that tokenize, which are meant for other
cores: what the clients and the workers need is another process's, and other load on the
machine matters little.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import uvloop

from experiments.path.null_relay import NullRelay
from router.server import Router
from stream2llm.serving.settings.router_spec import RouterLimits, RouterSpec
from stream2llm.serving.settings.worker_spec import ClusterView, WorkerAddress
from stream2llm.serving.system import garbage

MAX_MODEL_LEN = 65_536
_PAGE_BYTES = 4096
_END_S = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a subject is started with."""

    model_path: Path
    workers: tuple[WorkerAddress, ...]
    # The address of the null worker.
    null_worker: str


@dataclass(frozen=True, slots=True)
class Figures:
    """A subject's figures so far."""

    # CPU time of the event loop's thread and gRPC's, and of those that tokenize.
    cpu_s: float
    tokenizing_s: float
    rss_bytes: int
    # CPU time of the longest automatic collection since the figures before.
    longest_pause_s: float


@dataclass(slots=True)
class _Pauses:
    """Python's garbage collections, in CPU time of the thread that they stop."""

    longest_s: float = 0.0
    _began_s: float = field(default=0.0, init=False)

    def note(self, phase: str, _info: dict[str, int]) -> None:
        """For `gc.callbacks`."""
        if phase == "start":
            self._began_s = time.thread_time()
        else:
            self.longest_s = max(self.longest_s, time.thread_time() - self._began_s)


class Subject:
    """The handle of a running subject."""

    def __init__(self, pipe: Connection, router: str, null: str) -> None:
        self._pipe = pipe
        # host:port
        self.router_address = router
        self.null_address = null

    async def figures(self) -> Figures:
        """Its figures now."""
        figures: Figures = await self._ask("figures")
        return figures

    async def collect(self) -> float:
        """CPU seconds of one full collection."""
        seconds: float = await self._ask("collect")
        return seconds

    async def _ask(self, question: str) -> Any:
        self._pipe.send(question)
        return await asyncio.to_thread(self._pipe.recv)


@asynccontextmanager
async def a_subject(plan: Plan) -> AsyncIterator[Subject]:
    """Starts a process, and ends it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(theirs, plan))
    process.start()
    theirs.close()
    try:
        yield Subject(ours, *(await asyncio.to_thread(ours.recv)))
    finally:
        ours.close()
        await asyncio.to_thread(process.join, _END_S)
        process.kill()


def _run(pipe: Connection, plan: Plan) -> None:
    # The event loop of Ray's actors.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(pipe, plan))


async def _serve(pipe: Connection, plan: Plan) -> None:
    router, server = Router(_spec(plan)), grpc.aio.server()
    relay = NullRelay(plan.null_worker)
    relay.add_to(server)
    null_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = await router.start()
    router.set_view(ClusterView(1, plan.workers))
    garbage.settle()
    pipe.send((address.grpc_address, f"127.0.0.1:{null_port}"))
    await _answer(pipe)
    await server.stop(None)
    await relay.close()
    await router.stop()


async def _answer(pipe: Connection) -> None:
    """Answers questions until the other end is closed."""
    pauses = _Pauses()
    gc.callbacks.append(pauses.note)
    while True:
        try:
            question = await asyncio.to_thread(pipe.recv)
        except EOFError:
            return
        pipe.send(_figures(pauses) if question == "figures" else _full_collection())
        pauses.longest_s = 0.0


def _figures(pauses: _Pauses) -> Figures:
    num_pages = int(Path("/proc/self/statm").read_text().split()[1])
    tokenizing_s = sum(
        time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.name.startswith("tokenize") and thread.ident is not None
    )
    return Figures(
        time.process_time() - tokenizing_s,
        tokenizing_s,
        num_pages * _PAGE_BYTES,
        pauses.longest_s,
    )


def _full_collection() -> float:
    began_s = time.thread_time()
    gc.collect()
    return time.thread_time() - began_s


def _spec(plan: Plan) -> RouterSpec:
    return RouterSpec(
        router_id="router-0",
        host="127.0.0.1",
        port=0,
        metrics_port=0,
        model_name="path",
        model_path=str(plan.model_path),
        max_model_len=MAX_MODEL_LEN,
        limits=RouterLimits(max_open_sessions=20_000, input_idle_timeout_s=3600),
        handover="streamed",
        drain_timeout_s=1.0,
    )
