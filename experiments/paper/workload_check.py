"""The generator beside every figure that is published of the two workloads.

Lengths, times, chunks and gaps of generated traces at the published sizes; then what updates
invalidate in the simulated engine at the published loads, where published are the share of
vector searches that invalidate over 10,000 tokens that were computed ("more than 10 %"), and the
policies' figures relative to default.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, pstdev

import numpy as np

from cost_profiles.decision import Mode
from experiments.paper.h200 import load_fit
from experiments.paper.published import POLICIES, Setting, published_invalidations
from experiments.paper.runs import REPLAYED_GAPS, Cell, play
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.fit import fit
from stream2llm.workload.traces.format import Scale, Shape
from stream2llm.workload.traces.generate import generate
from stream2llm.workload.traces.measure import Samples
from stream2llm.workload.traces.targets import MANY_TOKENS, TARGETS

# Beside the quantiles of `targets`. Milliseconds, of all traces.
SPREADS: Mapping[Shape, Mapping[str, float]] = {
    "crawler": {"std": 1170.26, "min": 3.01, "max": 34946.56},
    "anns": {"std": 382.89, "min": 0.21, "max": 8916.65},
}
STATISTICS = ("P50", "P95", "mean")


def measured(shape: Shape, count: int, seed: int) -> Samples:
    """The sizes of so many generated sessions."""
    samples, scale = Samples(), Scale()
    arrivals_s = [0.0] * count
    for session in generate(shape, arrivals_s, seed, scale):
        samples.add(session, session.document_table({}), scale)
    return samples


def size_table(seed: int) -> str:
    """Markdown: published and ours."""
    rows = []
    for shape, target in TARGETS.items():
        samples = measured(shape, target.num_queries, seed)
        rows += [
            _row(shape, each.quantity, each.statistic, each.target, each.reached)
            for each in fit(samples, shape)
            if not each.at_least
        ]
        gaps = samples.gap_ms
        ours = {"std": pstdev(gaps), "min": min(gaps), "max": max(gaps)}
        rows += [
            _row(shape, "gap_ms", name, value, ours[name]) for name, value in SPREADS[shape].items()
        ]
        replaced = [value > MANY_TOKENS for value in samples.invalidated]
        if any(replaced):
            rows.append(
                [shape, "replaced", f"share over {MANY_TOKENS:,}", "", f"{fmean(replaced):.3f}", ""]
            )
    return markdown(Table(["shape", "quantity", "statistic", "theirs", "ours", "ratio"], rows, 3))


def _row(shape: str, quantity: str, statistic: str, theirs: float, ours: float) -> list[str]:
    return [shape, quantity, statistic, f"{theirs:,.4g}", f"{ours:,.4g}", f"{ours / theirs:.3f}"]


def invalidated(rate: float, policy: str, seed: int) -> Sequence[int]:
    """Tokens that were computed and thrown away, of each vector search."""
    cell = Cell(Setting("anns", rate, 1.0, Mode.COST), policy, seed, replays=True)
    return [each.invalidated_tokens or 0 for each in play(cell, load_fit()).sessions]


def invalidation_table(seed: int) -> str:
    """Markdown: policies relative to default, published and ours, and shares."""
    rows = []
    everything: list[int] = []
    for rate in sorted({rate for rate, _ in published_invalidations()}):
        base = invalidated(rate, "default", seed)
        for policy in ("default", *POLICIES):
            ours = base if policy == "default" else invalidated(rate, policy, seed)
            everything += ours
            many = fmean(value > MANY_TOKENS for value in ours)
            line = [f"{rate:g}/s", policy, f"{many:.1%}"]
            theirs = published_invalidations().get((rate, policy), (1.0, 1.0, 1.0))
            for one, other, ratio in zip(_statistics(ours), _statistics(base), theirs, strict=True):
                line += [f"{ratio:.2f}", f"{one / other:.2f}" if other else "-"]
            rows.append(line)
            print(" ".join(line), file=sys.stderr, flush=True)
    heads = [head for name in STATISTICS for head in (f"{name} theirs", "ours")]
    share = fmean(value > MANY_TOKENS for value in everything)
    found = markdown(Table(["load", "policy", f"over {MANY_TOKENS:,}", *heads], rows, 2))
    return f"{found}\n\nover {MANY_TOKENS:,} at all loads: {share:.1%}, published more than 10 %"


def _statistics(values: Sequence[int]) -> tuple[float, float, float]:
    p50, p95 = np.percentile(values, [50, 95]).tolist()
    return p50, p95, fmean(values)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1)


def main(args: Namespace) -> Iterator[str]:
    print(size_table(args.seed), end="\n\n")
    print(f"gaps of the replayed vector searches x{REPLAYED_GAPS['anns']:.2f}\n")
    print(invalidation_table(args.seed))
    yield from ()
