"""Two mixed workers against one prefill and one decode worker, simulated from the shipped profiles.

The same two devices, the published workloads, answers of 64 tokens. Loads are shares of what one
worker prefills: the pair apart has one for that, mixed workers have two, which also decode. Steps
of answers follow the same law as steps of prefill; of that, no GPU profile is measured.
"""

from __future__ import annotations

import random
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cost_profiles.load import shipped_profile
from stream2llm.serving.settings.worker_options import WorkerOptions
from stream2llm.simulator.play_trace import Machine, Way, play_trace
from stream2llm.simulator.steps import law_of
from stream2llm.simulator.work import Task, tasks
from stream2llm.workload.records import RunRecord
from stream2llm.workload.report.summary import latencies
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.arrivals import Poisson, first
from stream2llm.workload.traces.format import Scale, Shape
from stream2llm.workload.traces.generate import generate

NUM_OUTPUT_TOKENS = 64
LOADS = (0.4, 0.8, 1.2)
SHAPES: tuple[Shape, ...] = ("crawler", "anns")


@dataclass(frozen=True, slots=True)
class Device:
    """A shipped profile, and what of its memory is left for KV: nine tenths less the weights."""

    profile: str
    kv_gib: float
    # On the published prompt lengths, where the model or the memory takes no longer ones.
    token_scale: float = 1.0


DEVICES = (
    *(Device(f"{name}_llama-3.1-8b_tp1", gib) for name, gib in (("h200", 95), ("h100-sxm-80g", 50))),
    *(Device(f"{name}_llama-3.1-8b_tp1", gib) for name, gib in (("a100-80g", 50), ("a40", 24))),
    Device("l4_llama-3.1-8b_tp1", 5, 1 / 4),
    Device("cpu_smollm2-135m-instruct_tp1", 1, 1 / 8),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """Where the two pairs are compared."""

    device: Device
    shape: Shape
    load: float


@dataclass(frozen=True, slots=True)
class Found:
    """Milliseconds of one pair: to the first token, and between two tokens."""

    ttft_p50: float
    ttft_p95: float
    gap_p50: float
    gap_p99: float


def machines(device: Device) -> Mapping[str, Machine]:
    """The two pairs of this device."""
    profile = shipped_profile(device.profile)
    return {
        "mixed": Machine(profile, device.kv_gib, num_prefill=0, num_mixed=2),
        "apart": Machine(profile, device.kv_gib, num_prefill=1, num_decode=1),
    }


def asked(cell: Cell, num_sessions: int) -> list[Task]:
    """The sessions of a cell: those that fit, at a rate that keeps one worker so busy with prefill."""
    machine = machines(cell.device)["apart"]
    profile, scale = machine.profile, Scale(tokens=cell.device.token_scale)
    shaped = tasks(generate(cell.shape, [0.0] * num_sessions, 0, scale))
    law, budget = law_of(profile), profile.recompute.token_budget
    mean_s = float(np.mean([law.seconds_to(each.num_tokens, budget) for each in shaped]))
    rng = random.Random("mixed-pair")
    times = first(num_sessions, Poisson().arrivals(cell.load / mean_s, rng), "poisson")
    room = machine.num_blocks(machine.kv_gib) * profile.block_size - NUM_OUTPUT_TOKENS
    found = (each.later(at_s) for each, at_s in zip(shaped, times, strict=True))
    return [each for each in found if each.num_longest_tokens <= room]


def compare(cell: Cell, num_sessions: int, target_ms: int | None) -> dict[str, Found]:
    """Plays the sessions on both pairs."""
    load = asked(cell, num_sessions)
    way = Way(WorkerOptions(inter_token_target_ms=target_ms), num_output_tokens=NUM_OUTPUT_TOKENS)
    return {
        name: _found(play_trace(machine, way, load, cell.shape))
        for name, machine in machines(cell.device).items()
    }


def _found(run: RunRecord) -> Found:
    ttft_s = latencies(run, "ttft")
    gaps_s = [late - soon for each in run.sessions for soon, late in pairwise(each.token_times_s)]
    ttft, gaps = np.quantile(ttft_s, (0.5, 0.95)), np.quantile(gaps_s, (0.5, 0.99))
    return Found(*(1e3 * float(each) for each in (*ttft, *gaps)))


def cells(devices: Sequence[Device]) -> Iterator[Cell]:
    """All of them, in the order of the table."""
    for device in devices:
        for shape in SHAPES:
            for load in LOADS:
                yield Cell(device, shape, load)


def row(cell: Cell, found: Mapping[str, Found]) -> list[str]:
    """The cell's line: both figures, mixed first."""
    mixed, apart = found["mixed"], found["apart"]
    pairs = (
        (mixed.ttft_p50, apart.ttft_p50),
        (mixed.ttft_p95, apart.ttft_p95),
        (mixed.gap_p50, apart.gap_p50),
        (mixed.gap_p99, apart.gap_p99),
    )
    name = cell.device.profile.partition("_")[0]
    return [name, cell.shape, f"{cell.load:g}", *(f"{a:,.0f} / {b:,.0f}" for a, b in pairs)]


TITLES = ("device", "workload", "load", "TTFT P50, ms", "TTFT P95", "token P50", "token P99")


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--sessions", type=int, default=200, help="of each run")
    parser.add_argument("--target-ms", type=int, help="`mixed.inter_token_target_ms`")
    names = [each.profile for each in DEVICES]
    parser.add_argument("--profiles", nargs="+", choices=names, default=names)


def main(args: Namespace) -> Sequence[str]:
    """Prints the table, mixed / apart; the progress goes to stderr."""
    rows = []
    for cell in cells([each for each in DEVICES if each.profile in args.profiles]):
        rows.append(row(cell, compare(cell, args.sessions, args.target_ms)))
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    print("Two mixed workers / one prefill and one decode worker.\n")
    print(markdown(Table(list(TITLES), rows, 3)))
    return ()
