"""What traces cost a router: CPU time a session without them, sampled, and of every session.

Three routers in this process take the same sessions in turn, in blocks of random order; the
client, the collector and the workers (the tests' own, without engines) are other processes. A
block's cost is the CPU time of this process, all threads, divided by its sessions. Differences
are between the blocks of one round, so that what the machine does besides hits both.

Under other load the difference of 1 % is below the noise of that. So the calls alone are timed
too: what one session makes of them, its spans' way to the collector included. For workers, whose
sessions need an engine, there are only those.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import random
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from decode_worker.session_spans import DecodeNotes
from prefill_worker.session_spans import PrefillNotes
from router.metrics import InputMode, InputOp
from router.server import Router
from router.session_trace import SessionTrace
from router.timeline import Timeline
from stream2llm.api.events import Finished
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.token_step import FinishReason
from stream2llm.api.trace_context import TraceContext
from stream2llm.api.v1.worker_pb2 import SplicePrefill
from stream2llm.client import AsyncClient, Document
from stream2llm.serving.observability.tracing import Tracing, recording
from stream2llm.serving.settings.observability_options import ObservabilityOptions, TracingOptions
from stream2llm.serving.settings.router_spec import RouterSpec
from stream2llm.serving.settings.worker_spec import ClusterView
from stream2llm.serving.system.clock import SystemClock
from stream2llm.serving.system.processes import Origin
from tests.fake_workers import MAX_MODEL_LEN, Brain, FakeWorker
from tests.tiny_model import make_tiny_model
from tools.traces.collector import collecting

RATIOS: dict[str, float | None] = {"off": None, "1 %": 0.01, "100 %": 1.0}
# The bound on the calls of sessions of which every hundredth is recorded.
MOST_SAMPLED_PERCENT = 1.0
_NUM_DOCUMENTS = 10
_NUM_TOKENS = 16
_NUM_AT_ONCE = 4


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--sessions", type=int, default=100, help="sessions of a block")


def main(args: Namespace) -> Iterator[str]:
    """Measures, and prints a table."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=_other_process, args=(theirs,), daemon=True)
    other.start()
    workers, endpoint = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder))
        costs = asyncio.run(_measure(model, workers, endpoint, ours, args))
    alone = {name: asyncio.run(_calls_alone(endpoint, ratio)) for name, ratio in RATIOS.items()}
    at_worker = {
        name: asyncio.run(_worker_calls(endpoint, ratio)) for name, ratio in RATIOS.items()
    }
    ours.send(None)
    other.join()
    _print(costs, alone)
    for name in list(RATIOS)[1:]:
        extra_s = at_worker[name] - at_worker["off"]
        print(f"{name:>6}: {1e6 * extra_s:.0f} µs a session at its two workers")
    share = _percent_of_calls(costs, alone, "1 %")
    if share >= MOST_SAMPLED_PERCENT:
        yield f"sampled at 1 %, the calls take {share:.2f} % of a router's CPU time"


async def _measure(
    model: Path, workers: tuple[Any, ...], endpoint: str, other: Connection, args: Namespace
) -> dict[str, list[float]]:
    """Returns seconds of CPU a session, by setting, one for each round."""
    routers = {name: _router(model, endpoint, ratio) for name, ratio in RATIOS.items()}
    addresses = {name: (await router.start()).grpc_address for name, router in routers.items()}
    for router in routers.values():
        router.set_view(ClusterView(1, workers))
    costs: dict[str, list[float]] = {name: [] for name in RATIOS}
    order, shuffle = list(RATIOS), random.Random(1).shuffle
    for number in range(args.rounds + 1):
        shuffle(order)
        for name in order:
            began_s = time.process_time()
            other.send((addresses[name], args.sessions))
            await asyncio.to_thread(other.recv)
            await routers[name]._parts.tracing.flush()
            if number:  # the first round warms up
                costs[name].append((time.process_time() - began_s) / args.sessions)
    for router in routers.values():
        await router.stop()
    return costs


def _tracing(endpoint: str, ratio: float | None) -> TracingOptions:
    if ratio is None:
        return TracingOptions()
    return TracingOptions(otlp_endpoint=endpoint, sample_ratio=ratio)


def _router(model: Path, endpoint: str, ratio: float | None) -> Router:
    tracing = _tracing(endpoint, ratio)
    spec = RouterSpec(
        router_id="router-0",
        host="127.0.0.1",
        port=0,
        metrics_port=0,
        model_name="tiny",
        model_path=str(model),
        max_model_len=MAX_MODEL_LEN,
        handover="at_seal",
        drain_timeout_s=1.0,
        observability=ObservabilityOptions(tracing=tracing),
    )
    return Router(spec)


async def _calls_alone(endpoint: str, ratio: float | None, num_sessions: int = 5000) -> float:
    """Returns seconds of CPU that one session's calls take."""
    clock = SystemClock()
    options = _tracing(endpoint, ratio)
    tracing = Tracing(options, "router", Origin("router-0"), clock, CollectorRegistry())
    began_s = time.process_time()
    for number in range(num_sessions):
        trace = SessionTrace(tracing.begin("session", None))
        timeline = Timeline(clock)
        for _ in range(_NUM_DOCUMENTS + 2):
            trace.tokenized(InputOp.APPEND, trace.now_s(), 10, 1)
        for _ in range(2):  # RPCs to workers
            assert (trace.metadata is None) == (ratio is None)
        timeline.sealed()
        timeline.seal_sent()
        timeline.first_token()
        timeline.decode_step()
        trace.finished(Finished(FinishReason.LENGTH))
        trace.end(timeline, "ok", "session", "tiny", InputMode.APPEND, None)
        if number % 100 == 0:  # rarely more than the queue takes
            await tracing.flush()
    await tracing.flush()
    seconds = time.process_time() - began_s
    await tracing.close()
    return seconds / num_sessions


async def _worker_calls(endpoint: str, ratio: float | None, num_sessions: int = 5000) -> float:
    """Returns seconds of CPU that one session's calls take at its prefill and decode workers."""
    clock, options = SystemClock(), _tracing(endpoint, ratio)
    prefill = Tracing(options, "prefill", Origin("prefill-0"), clock, CollectorRegistry())
    decode = Tracing(options, "decode", Origin("decode-0"), clock, CollectorRegistry())
    every = round(1 / ratio) if ratio else num_sessions
    began_s = time.process_time()
    for number in range(num_sessions):
        parent = TraceContext(f"{number + 1:032x}", f"{number + 1:016x}", number % every == 0)
        _prefill_calls(PrefillNotes(prefill.begin("prefill", parent)))
        _decode_calls(DecodeNotes(decode.begin("decode", parent), "session", _NUM_TOKENS - 1))
        if number % 100 == 0:
            await asyncio.gather(prefill.flush(), decode.flush())
    await asyncio.gather(prefill.flush(), decode.flush())
    seconds = time.process_time() - began_s
    await asyncio.gather(prefill.close(), decode.close())
    return seconds / num_sessions


def _prefill_calls(notes: PrefillNotes) -> None:
    splice = SplicePrefill(revision=1, token_ids=bytes(40))
    with recording(notes.trace, notes.record):
        notes.session_id = "session"
        for number in range(_NUM_DOCUMENTS + 1):
            notes.spliced(splice, seal=number == _NUM_DOCUMENTS)
            notes.reported({"num_steps": 1, "steps_began_s": 0.0, "known_tokens": 10 * number})
            notes.offered(10 * number)
        notes.first_token(is_handed_over=True)


def _decode_calls(notes: DecodeNotes) -> None:
    with recording(notes.trace, notes.record):
        notes.submitted()
        for number in range(_NUM_TOKENS):
            notes.stepped(1, is_last=number == _NUM_TOKENS - 1)


def _print(costs: dict[str, list[float]], alone: dict[str, float]) -> None:
    off = costs["off"]
    for name, seconds in costs.items():
        print(f"{name:>6}: {1e3 * statistics.median(seconds):.3f} ms of CPU a session", end="")
        if name != "off":
            ratios = [100 * (own / base - 1) for own, base in zip(seconds, off, strict=True)]
            low, high = _median_interval(ratios)
            middle = statistics.median(ratios)
            print(f", {middle:+.2f} % (95 % interval {low:+.2f}, {high:+.2f})", end="")
        print()
        if name != "off":
            extra_s, share = alone[name] - alone["off"], _percent_of_calls(costs, alone, name)
            print(f"        the calls alone: {1e6 * extra_s:.0f} µs a session, {share:.2f} %")


def _percent_of_calls(costs: dict[str, list[float]], alone: dict[str, float], name: str) -> float:
    """The calls' share of what a session costs a router without traces."""
    return 100 * (alone[name] - alone["off"]) / statistics.median(costs["off"])


def _median_interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median, whatever the distribution: two order statistics."""
    size = len(values)
    rank = max(0, math.floor((size - 1.96 * math.sqrt(size)) / 2) - 1)
    ordered = sorted(values)
    return ordered[rank], ordered[size - 1 - rank]


def _other_process(pipe: Connection) -> None:
    with collecting() as (collector, endpoint):
        asyncio.run(_play_blocks(pipe, endpoint, collector.take))


async def _play_blocks(pipe: Connection, endpoint: str, forget: Any) -> None:
    brain = Brain([50] * MAX_MODEL_LEN)
    workers = [FakeWorker(f"{role}-0", role, brain) for role in ("prefill", "decode")]
    pipe.send((tuple([await worker.start() for worker in workers]), endpoint))
    while (block := await asyncio.to_thread(pipe.recv)) is not None:
        address, num_sessions = block
        async with AsyncClient(address) as client:
            waiting = iter(range(num_sessions))
            await asyncio.gather(*(_play(client, waiting) for _ in range(_NUM_AT_ONCE)))
        forget()
        for worker in workers:
            worker.prefill.records.clear()
            worker.decode.requests.clear()
        pipe.send("done")
    for worker in workers:
        await worker.kill()


async def _play(client: AsyncClient, waiting: Any) -> None:
    for number in waiting:
        sampling = SamplingParameters(max_tokens=_NUM_TOKENS, temperature=0.0)
        async with client.session(prefix="Read:", suffix="Answer.", sampling=sampling) as session:
            for index in range(_NUM_DOCUMENTS):
                await session.append(Document(f"document {index} of {number} " * 3, str(index)))
            await session.answer()
