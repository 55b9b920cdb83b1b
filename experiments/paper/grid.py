"""The paper's whole grid, simulated, beside what the paper measured."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from cost_profiles.decision import Mode
from experiments.kept import add_run_options, played
from experiments.paper.h200 import NUM_BLOCKS, Fit, load_fit
from experiments.paper.kept import KeptOutcomes, Outcome
from experiments.paper.published import QUANTILES, Setting, published
from experiments.paper.runs import Cell, play, ttfts_s
from stream2llm.workload.table import Table, markdown

# Wanted: within this of the paper at these quantiles ...
TOLERANCE = 0.25
CHECKED = ("p50", "p95")
# ... and the same order wherever the paper's systems differ by more than this.
CLEAR_DIFFERENCE = 0.15


@dataclass(frozen=True, slots=True)
class Comparison:
    """One number of the paper and ours."""

    setting: Setting
    system: str
    quantile: str
    paper_s: float
    ours_s: float

    @property
    def ratio(self) -> float:
        """Ours to the paper's."""
        return self.ours_s / self.paper_s

    @property
    def is_close(self) -> bool:
        """Whether it is within the tolerance, either way."""
        return 1 - TOLERANCE <= self.ratio <= 1 + TOLERANCE


@dataclass(frozen=True, slots=True)
class Order:
    """Two systems of one setting that differ clearly in the paper."""

    setting: Setting
    quantile: str
    faster: str
    slower: str
    # Theirs and ours: the slower one's seconds to the faster one's.
    paper: float
    ours: float

    @property
    def is_kept(self) -> bool:
        """Whether ours are in the same order."""
        return self.ours > 1


def outcome(cell: Cell, fit: Fit | None = None) -> Outcome:
    run = play(cell, fit or load_fit())
    return Outcome(cell, ttfts_s(run), run.counters)


def outcomes(cells: Sequence[Cell], args: Namespace) -> list[Outcome]:
    """Each cell, in order; says on stderr what is simulated.

    Where nothing is evicted, the modes of preemption are one run, and one of them is simulated.
    """
    kept = KeptOutcomes(args.state)
    first_of_modes: dict[Cell, Cell] = {}
    for cell in cells:
        first_of_modes.setdefault(_without_mode(cell), cell)
    for group in (first_of_modes.values(), cells):
        missing = [cell for cell in group if kept.get(cell) is None]
        for _, found in played(outcome, missing, args.processes, _cell_name):
            kept.add(found)
    everything = [kept.get(cell) for cell in cells]
    return [found for found in everything if found is not None]


def _without_mode(cell: Cell) -> Cell:
    return replace(cell, setting=replace(cell.setting, mode=Mode.COST))


def _cell_name(cell: Cell) -> str:
    return f"{setting_name(cell.setting)} {cell.system} seed {cell.seed}"


def paper_cells(seed: int, *, whole_requests: bool, memory: float = 1.0) -> list[Cell]:
    """One for each system and setting that the paper has numbers of."""
    return [
        Cell(each.setting, each.system, seed, whole_requests, memory=memory, replays=True)
        for each in published()
    ]


def comparisons(found: Iterable[Outcome]) -> list[Comparison]:
    """Each number of the paper for which there is one of ours."""
    paper = {(each.setting, each.system): each.ttft_s for each in published()}
    return [
        Comparison(o.cell.setting, o.cell.system, name, seconds, o.ttft_s[name])
        for o in found
        for name, seconds in paper.get((o.cell.setting, o.cell.system), {}).items()
    ]


def orders(compared: Sequence[Comparison]) -> list[Order]:
    """All pairs of systems whose P50 or P95 differ clearly in the paper."""
    by_setting: dict[tuple[Setting, str], list[Comparison]] = {}
    for each in compared:
        if each.quantile in CHECKED:
            by_setting.setdefault((each.setting, each.quantile), []).append(each)
    return [
        _order(one, other)
        for group in by_setting.values()
        for one, other in combinations(group, 2)
        if max(one.paper_s, other.paper_s)
        > (1 + CLEAR_DIFFERENCE) * min(one.paper_s, other.paper_s)
    ]


def _order(one: Comparison, other: Comparison) -> Order:
    fast, slow = sorted((one, other), key=lambda each: each.paper_s)
    return Order(
        one.setting,
        one.quantile,
        fast.system,
        slow.system,
        slow.paper_s / fast.paper_s,
        slow.ours_s / fast.ours_s,
    )


def table(compared: Sequence[Comparison]) -> str:
    """Markdown: paper, ours and ratio of every number."""
    rows: dict[tuple[Setting, str], list[str]] = {}
    for n in compared:
        cells = rows.setdefault((n.setting, n.system), [setting_name(n.setting), n.system])
        cells += [f"{n.paper_s:.3f}", f"{n.ours_s:.3f}", _marked(n)]
    heads = [head for name in QUANTILES for head in (f"{name} paper", "ours", "ratio")]
    return markdown(Table(["setting", "system", *heads], list(rows.values()), 2))


def _marked(number: Comparison) -> str:
    is_missed = number.quantile in CHECKED and not number.is_close
    return f"{number.ratio:.2f}{'*' if is_missed else ''}"


def setting_name(setting: Setting) -> str:
    """For people."""
    gaps = f", gaps x{setting.gap_factor:g}, {setting.mode}" if setting.gap_factor != 1 else ""
    bursts = ", bursts" if setting.bursts else ""
    return f"{setting.shape} {setting.rate:g}/s{gaps}{bursts}"


def verdict(compared: Sequence[Comparison]) -> str:
    """How many of the wanted agreements there are, and which pairs are the other way round."""
    lines = []
    for name in CHECKED:
        numbers = [each for each in compared if each.quantile == name]
        close = sum(each.is_close for each in numbers)
        lines.append(f"{name}: {close} of {len(numbers)} within {TOLERANCE:.0%}")
    pairs = orders(compared)
    kept = sum(each.is_kept for each in pairs)
    lines.append(
        f"order: {kept} of {len(pairs)} pairs that differ by more than {CLEAR_DIFFERENCE:.0%}"
    )
    lines += [_reversed_line(each) for each in pairs if not each.is_kept]
    return "\n".join(lines)


def _reversed_line(pair: Order) -> str:
    return (
        f"reversed: {setting_name(pair.setting)} {pair.quantile}: {pair.slower} takes"
        f" {pair.paper:.2f} x {pair.faster} in the paper, {pair.ours:.2f} x here"
    )


def add_memory_option(parser: ArgumentParser) -> None:
    """KV memory."""
    parser.add_argument(
        "--memory", type=float, default=1.0, help="KV memory, in times of what the paper's has"
    )


def add_options(parser: ArgumentParser) -> None:
    """Adds the options that choose the simulated cells."""
    add_run_options(parser)
    add_memory_option(parser)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--tails", action="store_true", help="evict as production does, not whole requests"
    )


def main(args: Namespace) -> Sequence[str]:
    """Prints the fitted parameters, and paper, ours and ratio for every number.

    A star marks a P50 or P95 that is further off than TOLERANCE.
    """
    print(f"fitted to the non-streaming rows: {load_fit()}")
    print(f"KV blocks: {int(NUM_BLOCKS * args.memory):,}\n")
    cells = paper_cells(args.seed, whole_requests=not args.tails, memory=args.memory)
    compared = comparisons(outcomes(cells, args))
    print(f"{table(compared)}\n\n{verdict(compared)}")
    return ()
