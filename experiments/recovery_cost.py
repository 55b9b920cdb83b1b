"""What recovery costs when nothing fails: TTFT and throughput with it and without, in turn.

One cluster on this machine (a small random Llama) and two routers in this process that share its
workers: one places sessions again (`router.recovery` as it comes), the other never does
(`max_restarts` 0). Rounds of equal sessions go through the one and through the other, each
first in every second round, so that what else happens on the machine happens to both. CPU
time is that of both routers and of their clients; others on the machine add nothing to it.
"""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.lab_cluster import lab_cluster, workers
from experiments.stopwatch import Stopwatch
from experiments.token_sessions import TokenMaker
from router.server import Router
from stream2llm.client import AsyncClient, SamplingParameters
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.layout import Factories, lay_out
from stream2llm.serving.settings.router_spec import RecoveryOptions, RouterSpec
from stream2llm.serving.settings.worker_spec import ClusterView
from stream2llm.workload.report.intervals import RatioInterval, ratio_interval
from stream2llm.workload.table import Table, markdown

READY_TIMEOUT_S = 600.0
MAX_MODEL_LEN = 4096
NUM_DOCUMENTS = 4
# With recovery to without.
MAX_RATIO = 1.01
OPTIONS: Mapping[str, RecoveryOptions] = {
    "on": RecoveryOptions(),
    "off": RecoveryOptions(max_restarts=0),
}


@dataclass(frozen=True, slots=True)
class Round:
    """Sessions that began at one moment."""

    ttft_s: tuple[float, ...]
    # Until the last answer had ended, of the clock and of this process's CPU.
    duration_s: float
    cpu_s: float


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=100, help="with each of the two")
    parser.add_argument("--sessions", type=int, default=8, help="at a time, in a round")
    parser.add_argument("--document-tokens", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=64)


def main(args: Namespace) -> Sequence[str]:
    """Prints the ratios; returns those that are certainly beyond the bound."""
    config = lab_cluster("experiments.recovery_cost", max_model_len=MAX_MODEL_LEN, max_num_seqs=32)
    with Cluster.start(config) as cluster:
        cluster.wait_ready(READY_TIMEOUT_S)
        rounds = asyncio.run(run_rounds(cluster, config, args))
    found = ratios(rounds["on"], rounds["off"])
    print(table(rounds, found))
    return missed(found)


async def run_rounds(
    cluster: Cluster, config: ClusterConfig, args: Namespace
) -> Mapping[str, Sequence[Round]]:
    """Plays all rounds on the cluster's workers; returns them by the router that they came through."""
    rounds: dict[str, list[Round]] = {name: [] for name in OPTIONS}
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(_router(cluster, config, name))
            for name in OPTIONS
        }
        for name in OPTIONS:  # whatever a first one has to set up
            await _round(clients[name], f"warm-up/{name}", args)
        for number in range(args.rounds):
            for name in in_turn(number):
                rounds[name].append(await _round(clients[name], f"{number}/{name}", args))
    return rounds


def in_turn(number: int) -> list[str]:
    """The order of the two in a round."""
    names = list(OPTIONS)
    return names[::-1] if number % 2 else names


@asynccontextmanager
async def _router(cluster: Cluster, config: ClusterConfig, name: str) -> AsyncIterator[AsyncClient]:
    """A client of a router of our own."""
    launch = lay_out(
        config, Path(config.model), {}, Factories(), cluster_token=cluster.worker_token
    )[0]
    assert isinstance(launch.spec, RouterSpec)
    router = Router(replace(launch.spec, router_id=f"recovery-{name}", recovery=OPTIONS[name]))
    address = await router.start()
    try:
        addresses = [each for role in ("prefill", "decode") for each in workers(cluster, role)]
        router.set_view(ClusterView(1, tuple(addresses)))
        async with AsyncClient(address.grpc_address) as client:
            yield client
    finally:
        await router.stop()


async def _round(client: AsyncClient, key: str, args: Namespace) -> Round:
    sampling = SamplingParameters(max_tokens=args.answer_tokens, temperature=0.0, ignore_eos=True)
    with Stopwatch() as watch:
        ttft_s = await asyncio.gather(
            *(
                _ask(client, f"{key}/{number}", args.document_tokens, sampling)
                for number in range(args.sessions)
            )
        )
    return Round(tuple(ttft_s), watch.seconds, watch.cpu_seconds)


async def _ask(
    client: AsyncClient, key: str, document_tokens: int, sampling: SamplingParameters
) -> float:
    """Streams documents that are in no cache, and reads the answer; returns its TTFT in seconds."""
    maker = TokenMaker()
    async with client.session(prefix=maker.text(16, key), sampling=sampling) as session:
        for number in range(NUM_DOCUMENTS):
            await session.append(maker.text(document_tokens, f"{key}/{number}"))
        answer = await session.answer(maker.text(16, f"{key}/suffix"))
    return answer.finished.timings.ttft_from_seal_s


def ratios(on: Sequence[Round], off: Sequence[Round]) -> dict[str, RatioInterval]:
    """Medians with recovery to those without, with their intervals."""

    def of(rounds: Sequence[Round]) -> dict[str, list[float]]:
        return {
            "TTFT": [ttft_s for each in rounds for ttft_s in each.ttft_s],
            "time of a round": [each.duration_s for each in rounds],
            "CPU of a round": [each.cpu_s for each in rounds],
        }

    with_it, without = of(on), of(off)
    return {what: ratio_interval(with_it[what], without[what], 50) for what in with_it}


def table(rounds: Mapping[str, Sequence[Round]], found: Mapping[str, RatioInterval]) -> str:
    """The ratios in Markdown."""
    rows = [
        [what, f"{each.ratio:.4f}", f"{each.low:.4f} to {each.high:.4f}"]
        for what, each in found.items()
    ]
    count = sum(len(each.ttft_s) for each in rounds["on"])
    titles = (f"medians of {count} sessions, {len(rounds['on'])} rounds", "on / off", "95 %")
    return markdown(Table(titles, rows))


def missed(found: Mapping[str, RatioInterval]) -> list[str]:
    """Ratios whose whole interval is beyond the bound."""
    return [
        f"{what} is {each.ratio:.3f} times that without recovery"
        for what, each in found.items()
        if each.low > MAX_RATIO
    ]
