"""What handing over ahead of the seal does to a loaded cluster, over several networks.

An 8B model on two H200, one for prefill and one for decode, the published workloads
at loads that leave prefill idle for half of the time or more. Compared are the wait
for the second token, which is when the KV has crossed, and the time to the first.
"""

from __future__ import annotations

import random
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cost_profiles.load import shipped_profile
from stream2llm.api.handover import HANDOVER_MODES, HandoverMode
from stream2llm.serving.settings.worker_options import (
    HandoverOptions,
    PrefillOptions,
    WorkerOptions,
)
from stream2llm.simulator.play_trace import Machine, Way, play_trace
from stream2llm.simulator.work import Task, tasks
from stream2llm.workload.records import RunRecord
from stream2llm.workload.report.summary import latencies
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.arrivals import Poisson, first
from stream2llm.workload.traces.format import Scale, Shape
from stream2llm.workload.traces.generate import generate

# Two RPCs, two engine steps, and posting the read: judgement, nothing is published of it.
READ_OVERHEAD_S = 0.004

PROFILE = "h200_llama-3.1-8b_tp1"
# 141 GB, of which nine tenths less 16 GB of weights: 99 GiB for KV; some are left for activations.
KV_GIB = 95.0
NUM_SESSIONS = 500
NUM_OUTPUT_TOKENS = 64
RATES: dict[Shape, float] = {"crawler": 1.0, "anns": 0.5}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    shape: Shape
    gbit_s: float
    handover: HandoverMode


def cells(gbit_s: Sequence[float]) -> list[Cell]:
    """All of them; the two that are compared one after the other."""
    return [
        Cell(shape, speed, mode) for shape in RATES for speed in gbit_s for mode in HANDOVER_MODES
    ]


def play(cell: Cell, asked: Sequence[Task]) -> RunRecord:
    machine = Machine(
        shipped_profile(PROFILE),
        KV_GIB,
        num_decode=1,
        network_gbit_s=cell.gbit_s,
        read_overhead_s=READ_OVERHEAD_S,
    )
    options = WorkerOptions(
        prefill=PrefillOptions(offload_pool_gib=0.0), handover=HandoverOptions(mode=cell.handover)
    )
    way = Way(
        options, num_output_tokens=NUM_OUTPUT_TOKENS, sample_every_s=None, label=cell.handover
    )
    return play_trace(machine, way, asked, cell.shape)


def workload(shape: Shape, seed: int) -> list[Task]:
    """The workload of a shape, at its published size."""
    comes = Poisson().arrivals(RATES[shape], random.Random(f"{seed}/arrivals"))
    return tasks(generate(shape, first(NUM_SESSIONS, comes, "poisson"), seed, Scale()))


def exposed_s(run: RunRecord) -> list[float]:
    """From the first token to the second, of each session."""
    times = (session.token_times_s for session in run.sessions)
    return [second - one for one, second, *_ in times]


def table(runs: Sequence[tuple[Cell, RunRecord]]) -> str:
    """Markdown: both settings in a row."""
    titles = ["shape", "Gbit/s", "P50: at_seal", "streamed", "gain", "P95: at_seal", "streamed"]
    titles += ["gain", "TTFT P50: at_seal", "streamed", "at decode at the seal", "wasted"]
    pairs = zip(runs[::2], runs[1::2], strict=True)
    return markdown(Table(titles, [_cells(one[0], one[1], other[1]) for one, other in pairs]))


def _cells(cell: Cell, at_seal: RunRecord, streamed: RunRecord) -> list[str]:
    parts = [cell.shape, f"{cell.gbit_s:g}"]
    for percent in (50, 95):
        before, after = (
            float(np.percentile(exposed_s(run), percent)) for run in (at_seal, streamed)
        )
        parts += [f"{1e3 * before:.1f} ms", f"{1e3 * after:.1f} ms", f"{before / after:.1f} x"]
    parts += [f"{1e3 * np.median(latencies(run, 'ttft')):.1f} ms" for run in (at_seal, streamed)]
    return [*parts, *_shares(streamed)]


def _shares(streamed: RunRecord) -> Iterator[str]:
    """Share of the needed tokens that were prefetched; share of the prefetched that none used."""
    prefetch, used, after = (
        streamed.counters[f"handover_{name}_tokens"]
        for name in ("prefetched", "used", "after_seal")
    )
    yield f"{used / (used + after):.0%}"
    yield f"{1 - used / prefetch:.0%}"


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--gbit", type=float, nargs="+", default=[25.0, 100.0, 400.0])
    parser.add_argument("--seed", type=int, default=1)


def main(args: Namespace) -> Sequence[str]:
    runs = []
    asked = {shape: workload(shape, args.seed) for shape in RATES}
    for cell in cells(args.gbit):
        print(f"{cell.shape} {cell.gbit_s:g} Gbit/s {cell.handover}", file=sys.stderr)
        runs.append((cell, play(cell, asked[cell.shape])))
    print(table(runs))
    return ()
