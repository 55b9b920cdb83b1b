"""A policy against fcfs and lcas when sessions arrive in bursts, in virtual time.

A burst builds up a queue of a minute; the order of that queue decides the median by an
order of magnitude, and hardly the longest wait. Arrivals: `arrivals.Phases`, which has the
dispersion of a code assistant's public arrivals; with `--arrivals` those of the recording
itself, an Azure LLM inference trace as published (AzureLLMInferenceTrace_code.csv): its first
requests, stretched to the rate of each setting, the same for every seed. One worker; two with
twice the load; and one whose sources are slow and whose memory is as scarce, for the sessions
open on average, as that which `experiments.paper.pressed` fits to the paper's preemptions.

Bounds are judged over pairs of runs with equal seeds: one is missed where the 95 % interval of
what the policy takes beyond it lies above zero, and met where none of it does.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from statistics import fmean

from cost_profiles.decision import Mode
from experiments.kept import add_run_options
from experiments.paired import excess
from experiments.paper.grid import outcomes, setting_name
from experiments.paper.kept import Outcome
from experiments.paper.pressed import FACTORS, load_memory
from experiments.paper.published import PRESSED_RATE, QUANTILES, Setting
from experiments.paper.runs import Cell
from prefill_worker.policy_loading import find_policy
from stream2llm.serving.settings.worker_options import PrefillOptions
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.arrivals import Phases
from stream2llm.workload.traces.format import Shape

RATES: Mapping[Shape, float] = {"crawler": 2.6, "anns": 1.1}
OTHERS = ("fcfs", "lcas")
FIGURES = (*QUANTILES, "mean")
SEEDS = tuple(range(11, 31))


@dataclass(frozen=True, slots=True)
class Bound:
    """What is wanted of one figure."""

    figure: str
    # So many times better than the best of these.
    wanted: float
    others: tuple[str, ...]


BOUNDS = (
    Bound("p50", 10.0, ("fcfs",)),
    Bound("mean", 2.0, ("fcfs",)),
    Bound("p95", 1.0, OTHERS),
    Bound("p99", 1 / 1.1, OTHERS),
)

# Seconds by figure, and evictions, of a system under a condition: a value for each seed.
Figures = Mapping[str, Sequence[float]]
Found = Mapping[str, Mapping[str, Figures]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A bound under one setting."""

    setting: str
    bound: Bound
    # The best of the bound's others, by the mean of the seeds.
    best: str
    # So many times better than that the challenger is.
    gain: float
    # The 95 % interval of its seconds beyond the bound.
    excess_s: tuple[float, float]

    @property
    def verdict(self) -> str:
        """met, missed, or undecided where so many seeds do not say."""
        low_s, high_s = self.excess_s
        return "missed" if low_s > 0 else "met" if high_s <= 0 else "undecided"


class Conditions(StrEnum):
    """Under which bursts are played."""

    ONE = "one"
    WORKERS = "workers"
    PRESSURE = "pressure"


def condition(shape: Shape, conditions: Conditions, recording: Path | None = None) -> Cell:
    """The setting of a cell, without its system and seed."""
    rate, factor, memory, num_workers = RATES[shape], 1.0, 1.0, 1
    if conditions is Conditions.WORKERS:
        rate, num_workers = 2 * rate, 2
    if conditions is Conditions.PRESSURE:
        factor = FACTORS[shape]
        memory = round(load_memory()[shape] * rate / PRESSED_RATE[shape], 3)
    setting = Setting(shape, rate, factor, Mode.COST, bursts=True)
    return Cell(
        *(setting, "", 0, False),
        memory=memory,
        num_workers=num_workers,
        recording=recording,
    )


def cells(
    policies: Sequence[str],
    seeds: Sequence[int],
    conditions: Sequence[Conditions] = tuple(Conditions),
    shapes: Sequence[Shape] = tuple(RATES),
    recording: Path | None = None,
) -> list[Cell]:
    """Everything to simulate, the seeds of one policy in their order."""
    return [
        replace(condition(shape, each, recording), system=policy, seed=seed)
        for each in conditions
        for shape in shapes
        for seed in seeds
        for policy in policies
    ]


def name_of(cell: Cell) -> str:
    """The setting's name in tables."""
    workers = f", {cell.num_workers} workers" if cell.num_workers > 1 else ""
    memory = f", memory x{cell.memory:g}" if cell.memory != 1 else ""
    source = f" of {cell.recording.name}" if cell.recording else ""
    return f"{setting_name(cell.setting)}{source}{workers}{memory}"


def by_setting(found: Iterable[Outcome]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Every figure of all seeds, by the setting's name and the policy."""
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for each in found:
        policies = figures.setdefault(name_of(each.cell), {})
        of_policy = policies.setdefault(each.cell.system, {})
        for name, value in {**each.ttft_s, "evictions": each.num_evictions}.items():
            of_policy.setdefault(name, []).append(value)
    return figures


def table(found: Found) -> str:
    """Markdown: a row for each policy under each condition; seconds, means of the seeds."""
    rows = [
        [
            name,
            policy,
            *(f"{fmean(seconds[key]):.2f}" for key in FIGURES),
            f"{fmean(seconds['evictions']):,.0f}",
        ]
        for name, policies in found.items()
        for policy, seconds in policies.items()
    ]
    return markdown(Table(["setting", "policy", *FIGURES, "evictions"], rows, num_left=2))


def judgements(found: Found, challenger: str) -> list[Judgement]:
    """Every bound under every setting."""
    return [
        _judged(setting, bound, policies, challenger)
        for setting, policies in found.items()
        for bound in BOUNDS
    ]


def _judged(
    setting: str, bound: Bound, policies: Mapping[str, Figures], challenger: str
) -> Judgement:
    best = min(bound.others, key=lambda other: fmean(policies[other][bound.figure]))
    ours, theirs = (policies[each][bound.figure] for each in (challenger, best))
    beyond_s = excess(ours, theirs, 1 / bound.wanted)
    return Judgement(setting, bound, best, fmean(theirs) / fmean(ours), beyond_s)


def verdicts(judged: Iterable[Judgement]) -> str:
    """Markdown: a row for each bound under each setting."""
    rows = [
        [
            *(each.setting, each.bound.figure, each.best, f"{each.gain:.2f}"),
            *(f"{each.bound.wanted:.3g}", "{:.2f} to {:.2f}".format(*each.excess_s), each.verdict),
        ]
        for each in judged
    ]
    heads = ["setting", "figure", "best other", "times better", "wanted"]
    return markdown(Table([*heads, "s beyond that", "verdict"], rows, num_left=3))


def misses(judged: Iterable[Judgement]) -> Iterator[str]:
    """A line for each bound that is missed by more than chance."""
    for each in judged:
        if each.verdict == "missed":
            gain = f"{each.gain:.2f} x better than {each.best}"
            yield f"{each.setting} {each.bound.figure}: {gain}, {each.bound.wanted:.3g} wanted"


def add_options(parser: ArgumentParser) -> None:
    """Adds the options that choose the simulated cells."""
    parser.add_argument("policy", nargs="?", default=PrefillOptions().policy, help="the challenger")
    add_run_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument(
        "--conditions", type=Conditions, nargs="+", choices=[*Conditions], default=[*Conditions]
    )
    parser.add_argument("--shapes", nargs="+", choices=[*RATES], default=[*RATES])
    parser.add_argument(
        "--arrivals", type=Path, help="an AzureLLMInferenceTrace_*.csv, instead of the generator's"
    )


def main(args: Namespace) -> Iterator[str]:
    """Prints seconds of TTFT from the seal, and what of the bounds is met."""
    policy = find_policy(args.policy).name
    plan = cells([*OTHERS, policy], args.seeds, args.conditions, args.shapes, args.arrivals)
    print(f"arrivals: {args.arrivals or Phases()}; seeds {' '.join(map(str, args.seeds))}\n")
    found = by_setting(outcomes(plan, args))
    judged = judgements(found, policy)
    print(f"{table(found)}\n\n{verdicts(judged)}")
    yield from misses(judged)
