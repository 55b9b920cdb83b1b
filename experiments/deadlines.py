"""Answers in time (goodput), simulated: deadlines under Poisson arrivals and in bursts.

Deadlines of the first token, from the seal: "classes" is 2 or 10 times, by lot, what the
session takes when it is alone, at least 100 ms; "uniform" is one second for all. The load is
what sessions ask to be computed over what the profile computes in that time. The challenger
knows the deadlines; so does edf, which serves the earliest first; fcfs and srpf do not. "at
most" is what no scheduler can exceed, see `experiments.deadline_bound`.
"""

from __future__ import annotations

import random
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Final

from cost_profiles.load import shipped_profile
from cost_profiles.model import CostModel
from experiments.deadline_bound import demands, fewest_missed
from experiments.kept import KeptFigures, add_run_options, played
from experiments.paired import interval
from prefill_worker.policy import Policy, RankKey
from prefill_worker.policy_loading import find_policy
from prefill_worker.types import RequestView
from stream2llm.serving.settings.worker_options import PrefillOptions, WorkerOptions
from stream2llm.simulator.play_trace import Machine, Way, play_trace
from stream2llm.simulator.steps import law_of
from stream2llm.simulator.work import Task, tasks
from stream2llm.workload.records import RunRecord
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.arrivals import Phases, Poisson, Process, first
from stream2llm.workload.traces.format import Scale, Shape
from stream2llm.workload.traces.generate import generate

PROFILE = "h200_llama-3.1-8b_tp2"
# What two H200 have beside the weights; little is evicted.
KV_GIB = 190.0
OPTIONS = WorkerOptions(prefill=PrefillOptions(offload_pool_gib=0.0))
LOADS = (0.5, 0.75, 1.0, 1.2, 1.5)
SEEDS = tuple(range(41, 61))
NUM_SESSIONS: Mapping[Shape, int] = {"crawler": 1000, "anns": 500}
ARRIVALS: Mapping[str, Process] = {"Poisson": Poisson(), "bursts": Phases()}
KINDS = ("classes", "uniform")
FACTORS = (2, 10)
SHORTEST_S = 0.1
UNIFORM_S = 1.0
# Without deadlines, and with them.
BLIND = ("fcfs", "srpf without")
EDF = "experiments.deadlines:EARLIEST_FIRST"
OTHERS = (*BLIND, "edf")
# What no scheduler can exceed.
BOUND = "at most"
# So many times the best of the others is wanted at this load.
WANTED_AT: Final = {1.2: 1.3}


def earliest_first(view: RequestView) -> RankKey:
    """Sealed before open; the earliest deadline first, kept or lost."""
    return (not view.sealed, view.deadline_ms, view.arrival)


EARLIEST_FIRST = Policy("edf", earliest_first, keeps_sealed_apart=True)


@dataclass(frozen=True, slots=True)
class Cell:
    """The sessions of one seed, played by every system with both kinds of deadlines."""

    shape: Shape
    arrivals: str
    load: float
    seed: int
    challenger: str
    num_sessions: int
    # So many workers share the load; KV memory of each.
    num_workers: int = 1
    kv_gib: float = KV_GIB


@dataclass(frozen=True, slots=True)
class Setting:
    """A row."""

    shape: Shape
    arrivals: str
    kind: str
    load: float


# Goodput of a cell, by kind of deadlines and system.
Goodput = Mapping[str, Mapping[str, float]]
# Goodput by setting and system, a value for each seed.
Found = Mapping[Setting, Mapping[str, Sequence[float]]]


@cache
def machine(num_workers: int = 1, kv_gib: float = KV_GIB) -> Machine:
    """Prefill workers."""
    return Machine(shipped_profile(PROFILE), kv_gib, num_prefill=num_workers)


def demand_s(task: Task, costs: CostModel) -> float:
    """Seconds to compute every token that the session asks for, replaced ones included."""
    return sum(
        costs.recompute_s(min(change.num_kept, change.num_known), change.num_known)
        for change in task.changes
    )


def at_load(cell: Cell) -> list[Task]:
    """The sessions, at the rate that makes the load."""
    nowhere = [0.0] * cell.num_sessions
    asked = tasks(generate(cell.shape, nowhere, cell.seed, Scale()))
    costs = CostModel(machine().profile)
    rate = cell.load * cell.num_workers / fmean(demand_s(each, costs) for each in asked)
    coming = ARRIVALS[cell.arrivals].arrivals(rate, random.Random(f"{cell.seed}/arrivals"))
    moments = first(cell.num_sessions, coming, "random arrivals")
    return [each.later(at_s) for each, at_s in zip(asked, moments, strict=True)]


def ttfts_alone_s(asked: Iterable[Task]) -> dict[str, float]:
    """TTFT of each session when no other is there."""
    apart, opens_s = [], 0.0
    for each in asked:
        apart.append(each.later(opens_s - each.opened_s))
        opens_s = apart[-1].sealed_s + 60
    run = _run("srpf", apart, machine())
    return {each.session_id: each.ttft_s or 0.0 for each in run.sessions}


def with_deadlines(asked: Sequence[Task], kind: str, seed: int) -> list[Task]:
    """The same sessions with deadlines of one of the two kinds."""
    if kind == "uniform":
        return [replace(each, ttft_slo_s=UNIFORM_S) for each in asked]
    alone_s, rng = ttfts_alone_s(asked), random.Random(f"{seed}/deadlines")
    return [
        replace(each, ttft_slo_s=max(SHORTEST_S, rng.choice(FACTORS) * alone_s[each.name]))
        for each in asked
    ]


def goodput(run: RunRecord, asked: Sequence[Task]) -> float:
    """Share of the answers that came within the deadlines of `asked`, known to the run or not."""
    slos_s = {each.name: each.ttft_slo_s for each in asked}
    records = [replace(each, ttft_slo_s=slos_s[each.session_id]) for each in run.sessions]
    return fmean(bool(each.is_in_time) for each in records)


def play(cell: Cell) -> Goodput:
    """Plays the sessions under every system, with both kinds of deadlines."""
    asked, workers = at_load(cell), machine(cell.num_workers, cell.kv_gib)
    blind = {system: _run(system.split()[0], asked, workers) for system in BLIND}
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        of_kind = with_deadlines(asked, kind, cell.seed)
        found[kind] = {system: goodput(run, of_kind) for system, run in blind.items()}
        found[kind][BOUND] = most_in_time(of_kind, cell.num_workers)
        for system, policy in (("edf", EDF), ("challenger", cell.challenger)):
            found[kind][system] = goodput(_run(policy, of_kind, workers), of_kind)
    return found


def most_in_time(asked: Sequence[Task], num_workers: int = 1) -> float:
    """The largest goodput that is possible; several workers are one that is as fast as all."""
    law, token_budget = law_of(machine().profile), machine().profile.recompute.token_budget
    each_s = demands(asked, law, token_budget, num_workers)
    return 1 - fewest_missed(each_s) / len(asked)


def _run(policy: str, asked: Sequence[Task], workers: Machine) -> RunRecord:
    return play_trace(
        workers, Way(OPTIONS.with_policy(policy), sample_every_s=None), asked, "deadlines"
    )


def outcomes(cells: Sequence[Cell], args: Namespace) -> list[Goodput]:
    """What each cell gives, in order; those that the file of `--state` has are not played."""
    kept = KeptFigures(args.state)
    missing = [cell for cell in cells if kept.get(cell) is None]
    for cell, found in played(play, missing, args.processes):
        kept.add(cell, found)
    return [kept.get(cell) for cell in cells]


def results(cells: Sequence[Cell], outcomes: Iterable[Goodput]) -> Found:
    """By setting and system, in the order of the seeds."""
    found: dict[Setting, dict[str, list[float]]] = {}
    for cell, outcome in zip(cells, outcomes, strict=True):
        for kind, systems in outcome.items():
            row = found.setdefault(Setting(cell.shape, cell.arrivals, kind, cell.load), {})
            for system, share in systems.items():
                row.setdefault(system, []).append(share)
    return found


def best_other(row: Mapping[str, Sequence[float]]) -> str:
    """The one with the highest mean goodput."""
    return max(OTHERS, key=lambda system: fmean(row[system]))


def table(found: Found, challenger: str) -> str:
    """Markdown: goodput in percent, means of the seeds, and the difference to the best other."""
    rows = []
    for setting, row in found.items():
        ours, best = row["challenger"], best_other(row)
        low, high = interval(ours, row[best])
        rows.append(
            [
                *(setting.shape, setting.arrivals, setting.kind, f"{setting.load:.0%}"),
                *(f"{fmean(row[system]):.1%}" for system in (*OTHERS, "challenger", BOUND)),
                f"{fmean(ours) / max(fmean(row[best]), 1e-9):.2f}",
                f"{100 * low:+.1f} to {100 * high:+.1f} ({best})",
            ]
        )
    heads = [*("shape", "arrivals", "deadlines", "load"), *OTHERS, challenger, BOUND]
    return markdown(Table([*heads, "to the best", "difference, points"], rows, 3))


def misses(found: Found) -> Iterator[str]:
    """A line for each bound that the challenger misses."""
    for setting, row in found.items():
        ours, best = row["challenger"], best_other(row)
        where = f"{setting.shape} {setting.arrivals} {setting.kind} {setting.load:.0%}"
        for system in OTHERS:
            high = interval(ours, row[system])[1]
            if high < 0:
                yield f"{where}: below {system}, by {-100 * high:.1f} points at least"
        gain = fmean(ours) / max(fmean(row[best]), 1e-9)
        if gain < WANTED_AT.get(setting.load, 0.0):
            yield f"{where}: {gain:.2f} x {best}, {WANTED_AT[setting.load]:g} wanted"


def add_options(parser: ArgumentParser) -> None:
    """Adds the options that choose what is simulated."""
    parser.add_argument("policy", nargs="?", default=PrefillOptions().policy, help="the challenger")
    add_run_options(parser)
    parser.add_argument("--shapes", nargs="+", choices=[*NUM_SESSIONS], default=[*NUM_SESSIONS])
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--sessions", type=int, help="by default 1,000 of a crawler, 500 of ANNS")
    parser.add_argument("--workers", type=int, default=1, help="that share the load")
    parser.add_argument("--kv-gib", type=float, default=KV_GIB, help="KV memory of each")
    parser.add_argument("--arrivals", nargs="+", choices=list(ARRIVALS), default=list(ARRIVALS))


def main(args: Namespace) -> Iterator[str]:
    """Prints goodput by setting, means of the seeds."""
    find_policy(args.policy)
    cells = [
        Cell(
            *(shape, arrivals, load, seed, args.policy),
            *(args.sessions or NUM_SESSIONS[shape], args.workers, args.kv_gib),
        )
        for shape in args.shapes
        for arrivals in args.arrivals
        for load in args.loads
        for seed in args.seeds
    ]
    found = results(cells, outcomes(cells, args))
    print(table(found, args.policy))
    yield from misses(found)
