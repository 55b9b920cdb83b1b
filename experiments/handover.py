"""What handing over ahead of the seal gains, and what it costs others.

One cluster on this machine (a small random Llama, one prefill and one decode
worker), both settings in one run and in turn, so that what else happens on the
machine happens to both. Every question comes once in each setting, with tokens
of its own, and then again at once, when all of its prompt is in decode's cache:
less than that no hand-over can take. Times mean something on a quiet machine only.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.handover_plan import questions
from experiments.handover_run import Beside, Decoders, Outcome, ask, ask_again
from experiments.lab_cluster import counted, lab_cluster
from stream2llm.api.handover import HANDOVER_MODES, HandoverMode
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.format import Shape

_SHAPES: tuple[Shape, ...] = ("crawler", "anns")
_ANSWER_TOKENS = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """All questions of one shape and length, one way. Medians over questions."""

    shape: Shape
    num_tokens: int
    mode: str
    exposed_ms: float
    ttft_ms: float
    # Share of the prompt, and of its settled tokens, at decode before the first token.
    prefetched_share: float
    settled_share: float
    # Share of the prefetched bytes that no answer used; 0 where nothing is fetched.
    wasted_share: float


@dataclass(frozen=True, slots=True)
class BesideRow:
    """Other answers on the decode worker, while questions came one way."""

    mode: str
    tokens_per_s: float
    mean_gap_ms: float
    p95_gap_ms: float


@dataclass(frozen=True, slots=True)
class BesideCost:
    """Streamed to at_seal, for the same question asked both ways. Medians over pairs."""

    num_pairs: int
    tokens_per_s: float
    mean_gap: float


@dataclass(frozen=True, slots=True)
class Report:
    """One run."""

    rows: tuple[Row, ...]
    beside: tuple[BesideRow, ...] = ()
    beside_cost: BesideCost | None = None


def main(args: Namespace) -> Iterator[str]:
    with Cluster.start(_config()) as cluster:
        cluster.wait_ready(600)
        report = asyncio.run(_run(cluster, args))
    print(table(report))
    if args.json:
        args.json.write_text(json.dumps(asdict(report), indent=1))
    return missed(report)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 4000, 16_000])
    parser.add_argument("--shapes", nargs="+", default=list(_SHAPES), choices=_SHAPES)
    parser.add_argument("--repeats", type=int, default=10, help="questions of each kind")
    parser.add_argument("--seconds", type=float, default=6.0, help="that a context takes to come")
    parser.add_argument("--beside", type=int, default=2, help="answers that decode meanwhile")
    parser.add_argument("--pairs", type=int, default=30, help="questions beside them, each way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file for the figures")


def _config() -> ClusterConfig:
    return lab_cluster("experiments.handover", max_model_len=16_384, max_num_seqs=16)


async def _run(cluster: Cluster, args: Namespace) -> Report:
    rows: list[Row] = []
    async with AsyncClient(cluster.router_addresses[0]) as client:
        for shape in args.shapes:
            for num_tokens in args.tokens:
                rows += await _compare(cluster, client, shape, num_tokens, args)
        if not args.beside:
            return Report(tuple(rows))
        rounds = await _beside(client, args)
    beside = tuple(_beside_row(mode, each) for mode, each in rounds.items())
    return Report(tuple(rows), beside, _beside_cost(rounds["at_seal"], rounds["streamed"]))


async def _compare(
    cluster: Cluster, client: AsyncClient, shape: Shape, num_tokens: int, args: Namespace
) -> list[Row]:
    outcomes: dict[str, list[Outcome]] = {mode: [] for mode in (*HANDOVER_MODES, "cached")}
    moved: dict[str, Counter[str]] = {mode: Counter() for mode in HANDOVER_MODES}
    for number in range(args.repeats):
        for mode in HANDOVER_MODES:
            # The same question but for its tokens: one must not warm the other's cache.
            seed = args.seed * 1000 + number
            (plan,) = questions(shape, 1, num_tokens, args.seconds, seed, salt=mode)
            before = _bytes_moved(cluster)
            outcomes[mode].append(await ask(client, plan, mode))
            moved[mode] += _bytes_moved(cluster) - before
            outcomes["cached"].append(await ask_again(client, plan))
    return [_row(shape, num_tokens, mode, each, moved.get(mode)) for mode, each in outcomes.items()]


def _bytes_moved(cluster: Cluster) -> Counter[str]:
    """KV so far: "prefetched" and used, "after_seal", "wasted"."""
    return counted(cluster.http_address, "stream2llm_handover_bytes_total", "when")


def _row(
    shape: Shape, num_tokens: int, mode: str, outcomes: list[Outcome], moved: Counter[str] | None
) -> Row:
    fetched = moved["prefetched"] + moved["wasted"] if moved else 0
    return Row(
        shape=shape,
        num_tokens=num_tokens,
        mode=mode,
        exposed_ms=1e3 * statistics.median(each.exposed_s for each in outcomes),
        ttft_ms=1e3 * statistics.median(each.ttft_s for each in outcomes),
        prefetched_share=statistics.median(
            each.prefetched_tokens / each.prompt_tokens for each in outcomes
        ),
        settled_share=statistics.median(each.prefetched_share for each in outcomes),
        wasted_share=moved["wasted"] / fetched if moved and fetched else 0.0,
    )


async def _beside(client: AsyncClient, args: Namespace) -> dict[HandoverMode, list[Beside]]:
    """Answers decode while questions of middle length come, one way and the other in turn."""
    num_tokens = sorted(args.tokens)[len(args.tokens) // 2]
    rounds: dict[HandoverMode, list[Beside]] = {mode: [] for mode in HANDOVER_MODES}
    for number in range(args.pairs):
        # Who begins changes, so that a machine that gets slower does not favour one.
        for mode in HANDOVER_MODES if number % 2 else HANDOVER_MODES[::-1]:
            seed = 500_000 + args.seed * 1000 + number
            (plan,) = questions("crawler", 1, num_tokens, args.seconds, seed, salt=mode)
            async with Decoders(client, args.beside, _ANSWER_TOKENS) as decoders:
                await ask(client, plan, mode)
                rounds[mode].append(decoders.figures())
    return rounds


def _beside_row(mode: HandoverMode, rounds: list[Beside]) -> BesideRow:
    gaps_s = sorted(gap_s for each in rounds for gap_s in each.gaps_s)
    return BesideRow(
        mode,
        statistics.median(each.tokens_per_s for each in rounds),
        1e3 * statistics.fmean(gaps_s),
        1e3 * gaps_s[int(0.95 * (len(gaps_s) - 1))],
    )


def _beside_cost(at_seal: list[Beside], streamed: list[Beside]) -> BesideCost:
    """Pair by pair: what else happens on a machine lasts longer than a question."""
    pairs = list(zip(streamed, at_seal, strict=True))
    return BesideCost(
        len(pairs),
        statistics.median(ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs),
        statistics.median(ours.mean_gap_s / theirs.mean_gap_s for ours, theirs in pairs),
    )


def table(report: Report) -> str:
    """Markdown."""
    titles = ["shape", "hand-over", "tokens", "first to second token", "TTFT"]
    titles += ["at decode ahead", "of what had settled", "wasted"]
    parts = [markdown(Table(titles, [_cells(row) for row in report.rows], 2))]
    beside = [
        [
            each.mode,
            f"{each.tokens_per_s:.1f}",
            f"{each.mean_gap_ms:.2f} ms",
            f"{each.p95_gap_ms:.2f} ms",
        ]
        for each in report.beside
    ]
    parts.append(markdown(Table(["beside", "tokens/s", "mean gap", "P95 gap"], beside)))
    if (cost := report.beside_cost) is not None:
        parts.append(
            f"beside, streamed to at_seal, median of {cost.num_pairs} pairs:"
            f" tokens/s {cost.tokens_per_s:.3f}, gap {cost.mean_gap:.3f}"
        )
    return "\n\n".join(parts)


def _cells(row: Row) -> list[str]:
    shares = (row.prefetched_share, row.settled_share, row.wasted_share)
    times = [f"{row.exposed_ms:.1f} ms", f"{row.ttft_ms:.0f} ms"]
    return [row.shape, row.mode, f"{row.num_tokens:,}", *times, *(f"{s:.0%}" for s in shares)]


def missed(report: Report) -> Iterator[str]:
    """The bounds that do not hold."""
    by_kind = {(row.shape, row.num_tokens, row.mode): row for row in report.rows}
    for (shape, num_tokens, mode), row in by_kind.items():
        if mode == "streamed":
            at_seal = by_kind[shape, num_tokens, "at_seal"]
            cached = by_kind[shape, num_tokens, "cached"]
            where = f"{shape}, {num_tokens:,} tokens"
            bounds = _append_bounds if shape == "crawler" else _update_bounds
            yield from (f"{where}: {miss}" for miss in bounds(row, at_seal, cached))
    if report.beside_cost is not None:
        yield from _beside_bounds(report.beside_cost)


def _append_bounds(row: Row, at_seal: Row, cached: Row) -> Iterator[str]:
    if row.settled_share < 0.95:
        yield f"{row.settled_share:.0%} of what had settled is at decode, 95% are wanted"
    if row.exposed_ms > 1.3 * cached.exposed_ms:
        yield f"{row.exposed_ms:.1f} ms exposed, 1.3 x {cached.exposed_ms:.1f} ms are allowed"
    if row.num_tokens >= 4000 and row.exposed_ms >= at_seal.exposed_ms:
        yield f"{row.exposed_ms:.1f} ms exposed, at the seal {at_seal.exposed_ms:.1f} ms"


def _update_bounds(row: Row, at_seal: Row, cached: Row) -> Iterator[str]:
    if row.settled_share < 0.5:
        yield f"{row.settled_share:.0%} of what had settled is at decode, 50% are wanted"
    if row.wasted_share > 0.35:
        yield f"{row.wasted_share:.0%} of what was fetched is wasted, 35% are allowed"
    if row.exposed_ms > 1.05 * at_seal.exposed_ms:
        yield f"{row.exposed_ms:.1f} ms exposed, at the seal {at_seal.exposed_ms:.1f} ms"


def _beside_bounds(cost: BesideCost) -> Iterator[str]:
    if cost.tokens_per_s < 0.97:
        yield f"others get {cost.tokens_per_s:.3f} of their tokens/s, 0.97 are wanted"
    if cost.mean_gap > 1.03:
        yield f"others wait {cost.mean_gap:.3f} x as long for each token, 1.03 x are allowed"
