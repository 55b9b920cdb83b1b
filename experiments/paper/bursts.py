"""A policy against fcfs and lcas when sessions arrive in bursts, in virtual time.

A burst builds up a queue of a minute; the order of that queue decides the median by an
order of magnitude, and hardly the longest wait. Arrivals: `arrivals.Phases`, which has the
dispersion of a code assistant's public arrivals. One worker; two with twice the load; and one
whose sources are slow and whose memory is as scarce, for the sessions open on average, as that
which `experiments.paper.pressed` fits to the paper's preemptions.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from statistics import fmean

from cost_profiles.decision import Mode
from experiments.kept import add_run_options
from experiments.paper.grid import outcomes, setting_name
from experiments.paper.kept import Outcome
from experiments.paper.pressed import FACTORS, load_memory
from experiments.paper.published import PRESSED_RATE, QUANTILES, Setting
from experiments.paper.runs import Cell
from prefill_worker.policy_loading import find_policy
from stream2llm.serving.settings.worker_options import PrefillOptions
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.format import Shape

RATES: Mapping[Shape, float] = {"crawler": 2.6, "anns": 1.1}
OTHERS = ("fcfs", "lcas")
FIGURES = (*QUANTILES, "mean")
# So many times better than fcfs is wanted, and at most so many times the better of both.
WANTED_TO_FCFS = {"p50": 10.0, "mean": 2.0}
ALLOWED_TO_BEST = {"p95": 1.0, "p99": 1.1}
SEEDS = tuple(range(11, 31))

# Seconds by figure and evictions, of a system under a condition: the mean of the seeds.
Means = Mapping[str, float]


class Conditions(StrEnum):
    """Under which bursts are played."""

    ONE = "one"
    WORKERS = "workers"
    PRESSURE = "pressure"


def condition(shape: Shape, conditions: Conditions) -> Cell:
    """The setting of a cell, without its system and seed."""
    rate, factor, memory, num_workers = RATES[shape], 1.0, 1.0, 1
    if conditions is Conditions.WORKERS:
        rate, num_workers = 2 * rate, 2
    if conditions is Conditions.PRESSURE:
        factor = FACTORS[shape]
        memory = round(load_memory()[shape] * rate / PRESSED_RATE[shape], 3)
    setting = Setting(shape, rate, factor, Mode.COST, bursts=True)
    return Cell(setting, "", 0, False, memory=memory, num_workers=num_workers)


def cells(
    policies: Sequence[str],
    seeds: Sequence[int],
    conditions: Sequence[Conditions] = tuple(Conditions),
    shapes: Sequence[Shape] = tuple(RATES),
) -> list[Cell]:
    return [
        replace(condition(shape, each), system=policy, seed=seed)
        for each in conditions
        for shape in shapes
        for seed in seeds
        for policy in policies
    ]


def name_of(cell: Cell) -> str:
    """The setting's name in tables."""
    workers = f", {cell.num_workers} workers" if cell.num_workers > 1 else ""
    memory = f", memory x{cell.memory:g}" if cell.memory != 1 else ""
    return f"{setting_name(cell.setting)}{workers}{memory}"


def means(found: Iterable[Outcome]) -> dict[str, dict[str, Means]]:
    """By conditions and policy."""
    runs: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    for each in found:
        figures = {**each.ttft_s, "evictions": each.num_evictions}
        runs.setdefault(name_of(each.cell), {}).setdefault(each.cell.system, []).append(figures)
    return {
        name: {
            policy: {key: fmean(run[key] for run in each) for key in each[0]}
            for policy, each in policies.items()
        }
        for name, policies in runs.items()
    }


def table(found: Mapping[str, Mapping[str, Means]]) -> str:
    """Markdown: a row for each policy under each condition; seconds."""
    rows = [
        [
            name,
            policy,
            *(f"{seconds[key]:.2f}" for key in FIGURES),
            f"{seconds['evictions']:,.0f}",
        ]
        for name, policies in found.items()
        for policy, seconds in policies.items()
    ]
    return markdown(Table(["setting", "policy", *FIGURES, "evictions"], rows, num_left=2))


def misses(found: Mapping[str, Mapping[str, Means]], challenger: str) -> Iterator[str]:
    """A line for each bound that the challenger misses."""
    for where, policies in found.items():
        ours = policies[challenger]
        for name, wanted in WANTED_TO_FCFS.items():
            gain = policies["fcfs"][name] / ours[name]
            if gain < wanted:
                yield f"{where} {name}: {gain:.2f} x better than fcfs, {wanted:g} wanted"
        for name, allowed in ALLOWED_TO_BEST.items():
            best = min(policies[other][name] for other in OTHERS)
            if ours[name] > allowed * best:
                yield f"{where} {name}: {ours[name] / best:.2f} of the best, {allowed:g} allowed"


def add_options(parser: ArgumentParser) -> None:
    """Adds the options that choose the simulated cells."""
    parser.add_argument("policy", nargs="?", default=PrefillOptions().policy, help="the challenger")
    add_run_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument(
        "--conditions", type=Conditions, nargs="+", choices=[*Conditions], default=[*Conditions]
    )
    parser.add_argument("--shapes", nargs="+", choices=[*RATES], default=[*RATES])


def main(args: Namespace) -> Iterator[str]:
    """Prints seconds of TTFT from the seal, means of the seeds."""
    policy = find_policy(args.policy).name
    found = means(
        outcomes(cells([*OTHERS, policy], args.seeds, args.conditions, args.shapes), args)
    )
    print(table(found))
    yield from misses(found, policy)
