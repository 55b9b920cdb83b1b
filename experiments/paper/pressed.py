"""The paper's settings with little memory, beside its preemptions and its TTFT, mode by mode.

Preemption is the public artifact's (`artifact.py`), arrivals are those that it replayed. Two
rules, neither of which looks at TTFT:

- Copies: published vector searches copy 1 % of their victims. What is compared is a newcomer's
  tokens, mostly a whole step of 8,192; so copying these costs just more than computing them.
- KV memory, for each shape: as many preemptions of fcfs in mode cost as published. In
  `data/h200_pressure.json`; `--fit` finds it anew. The number leaps by a tenth from one memory
  to the next.

Everything else is predicted: other policies and modes, the share that is copied, TTFT.

`--ours` has production's preemption at the same memory instead, and srpf with it.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan

from cost_profiles.decision import Mode
from experiments.paper.artifact import play_as_published
from experiments.paper.grid import setting_name
from experiments.paper.h200 import BLOCK_SIZE, DATA, TOKEN_BUDGET, load_fit
from experiments.paper.published import (
    NOT_STREAMED,
    PRESSED_RATE,
    QUANTILES,
    Preemptions,
    Setting,
    published,
    published_preemptions,
)
from experiments.paper.runs import Cell, play, ttfts_s
from stream2llm.simulator.steps import StepLaw
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.format import Shape

MEMORY = DATA / "h200_pressure.json"
POLICIES = ("default", "fcfs", "lcas", "mcps")
FACTORS: Mapping[Shape, float] = {"crawler": 10.0, "anns": 30.0}
FITTED: Mapping[Shape, tuple[Setting, str]] = {
    "crawler": (Setting("crawler", 4.0, 10.0, Mode.COST), "fcfs"),
    "anns": (Setting("anns", 2.0, 30.0, Mode.COST), "fcfs"),
}
LEAST_MEMORY, MEMORY_STEP = 0.1, 0.01
COPIES = 1.005


@dataclass(frozen=True, slots=True)
class Row:
    """One system under one setting. Seconds by the names of QUANTILES."""

    setting: Setting
    system: str
    ttft_s: Mapping[str, float]
    preemptions: Preemptions


def load_memory() -> dict[Shape, float]:
    """KV memory by shape, in times of what the hardware suggests, as `--fit` left it."""
    found: dict[Shape, float] = json.loads(MEMORY.read_text("utf-8"))
    return found


def block_s(law: StepLaw) -> float:
    """Seconds of copying a block, each way; see the module's text."""
    num_tokens = TOKEN_BUDGET["anns"]
    return COPIES * law.seconds([(0, num_tokens)]) / (2 * num_tokens / BLOCK_SIZE)


def run(setting: Setting, system: str, seed: int, memory: float) -> Row:
    """Plays one with the artifact's preemption."""
    machine = load_fit()
    cell = Cell(setting, system, seed, memory=memory, replays=True)
    found = play_as_published(cell, machine, block_s(machine.law))
    return Row(setting, system, ttfts_s(found.run), found.preemptions)


def run_ours(setting: Setting, system: str, seed: int, memory: float) -> Row:
    """Plays one with production's, and copies as the datasheet has them."""
    found = play(Cell(setting, system, seed, False, memory=memory, replays=True), load_fit())
    counters = found.counters
    victims = counters["recomputed_victims"], counters["swapped_victims"]
    return Row(setting, system, ttfts_s(found), Preemptions(*victims, nan, nan))


def fit(shape: Shape, seed: int) -> float:
    """The memory with as many preemptions as published, by bisection."""
    low, high = LEAST_MEMORY, 1.0
    theirs = published_preemptions()[FITTED[shape]].total
    while high - low > MEMORY_STEP:
        middle = (low + high) / 2
        ours = run(*FITTED[shape], seed, middle).preemptions.total
        print(f"{shape}, memory {middle:.4f}: {ours:,.0f}", file=sys.stderr, flush=True)
        low, high = (low, middle) if ours < theirs else (middle, high)
    return round((low + high) / 2, 4)


def settings() -> list[Setting]:
    """Those with slow sources, by shape and mode."""
    return [
        Setting(shape, PRESSED_RATE[shape], factor, mode)
        for shape, factor in FACTORS.items()
        for mode in (Mode.COST, Mode.RECOMPUTE, Mode.SWAP)
    ]


def preemption_table(rows: Sequence[Row]) -> str:
    """Markdown: ours and theirs."""
    theirs = published_preemptions()
    lines = [
        [
            setting_name(row.setting),
            row.system,
            f"{row.preemptions.total:,.0f}",
            f"{theirs[row.setting, row.system].total:,.0f}",
            f"{row.preemptions.swapped_share:.0%}",
            f"{theirs[row.setting, row.system].swapped_share:.0%}",
            f"{row.preemptions.requests_p50:.0f} / {row.preemptions.requests_p95:.0f}",
            "{0.requests_p50:.0f} / {0.requests_p95:.0f}".format(theirs[row.setting, row.system]),
        ]
        for row in rows
        if (row.setting, row.system) in theirs
    ]
    titles = ["setting", "policy", "preemptions", "theirs", "copied", "theirs"]
    return markdown(Table([*titles, "requests then, P50 / P95", "theirs"], lines, 2))


def ttft_table(rows: Sequence[Row]) -> str:
    """Markdown: seconds, ours and theirs."""
    theirs = {(each.setting, each.system): each.ttft_s for each in published()}
    lines = []
    for row in rows:
        line = [setting_name(row.setting), row.system]
        paper = theirs.get((row.setting, row.system), {})
        for name in QUANTILES:
            line += [f"{row.ttft_s[name]:.3f}", f"{paper[name]:.3f}" if paper else ""]
        lines.append(line)
    heads = [head for name in QUANTILES for head in (f"{name} s", "theirs")]
    return markdown(Table(["setting", "system", *heads], lines, 2))


def add_options(parser: ArgumentParser) -> None:
    """Adds the options of this experiment to the parser."""
    parser.add_argument("--seed", type=int, default=1, help="of lengths and times, not arrivals")
    parser.add_argument("--fit", action="store_true", help="fit the memory first, and save it")
    parser.add_argument("--ours", action="store_true", help="production's preemption instead")
    parser.add_argument("--shapes", nargs="+", choices=[*FACTORS], default=[*FACTORS])


def main(args: Namespace) -> Iterator[str]:
    memory = load_memory()
    if args.fit:
        memory |= {shape: fit(shape, args.seed) for shape in args.shapes}
        MEMORY.write_text(json.dumps(memory, indent=2) + "\n", "utf-8")
    print(f"memory {memory}, {block_s(load_fit().law):.3g} s a block, seed {args.seed}\n")
    rows = list(_rows(args, memory))
    if not args.ours:
        print(preemption_table(rows), end="\n\n")
    else:
        print(ours_table(rows), end="\n\n")
    print(ttft_table(rows))
    yield from ()


def _rows(args: Namespace, memory: Mapping[Shape, float]) -> Iterator[Row]:
    for setting, system in _cells(args):
        play_it = run_ours if args.ours else run
        row = play_it(setting, system, args.seed, memory[setting.shape])
        print(row, file=sys.stderr, flush=True)
        yield row


def _cells(args: Namespace) -> Iterator[tuple[Setting, str]]:
    for setting in (each for each in settings() if each.shape in args.shapes):
        # Without streaming no session waits with KV, and no mode matters.
        if setting.mode is Mode.COST:
            yield setting, NOT_STREAMED
        for system in ("fcfs", "lcas", "srpf") if args.ours else POLICIES:
            yield setting, system


def ours_table(rows: Sequence[Row]) -> str:
    """Markdown: production's preemptions."""
    lines = [
        [
            setting_name(row.setting),
            row.system,
            f"{row.preemptions.total:,.0f}",
            f"{row.preemptions.swapped_share:.0%}",
        ]
        for row in rows
    ]
    return markdown(Table(["setting", "policy", "evictions", "copied"], lines, 2))
