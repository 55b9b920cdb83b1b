"""A trace compared with the published workload of its shape. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.format import Shape
from stream2llm.workload.traces.measure import Samples, statistic
from stream2llm.workload.traces.targets import MANY_TOKENS, TARGETS

TOLERANCE = 0.10
# Statistics of fewer sessions are as far from the published ones by chance alone.
MIN_SESSIONS = 100


@dataclass(frozen=True, slots=True)
class FitRow:
    """One published number and what a trace has in its place."""

    quantity: str
    statistic: str
    target: float
    reached: float
    # Whether the target is a lower bound.
    at_least: bool = False
    num_sessions: int = MIN_SESSIONS

    @property
    def ratio(self) -> float:
        """Reached, in targets."""
        return self.reached / self.target

    @property
    def is_met(self) -> bool:
        """Within the tolerance, or beyond the bound."""
        if self.at_least:
            return self.ratio >= 1
        return abs(self.ratio - 1) <= TOLERANCE


def fit(samples: Samples, shape: Shape) -> list[FitRow]:
    """Every number of the shape's table."""
    number = len(samples.tokens)
    return [replace(row, num_sessions=number) for row in _rows(samples, shape)]


def fit_table(rows: Iterable[FitRow]) -> str:
    """The rows as a Markdown table."""
    titles = ["quantity", "statistic", "target", "reached", "ratio", ""]
    return markdown(Table(titles, [_cells(row) for row in rows], 2))


def _cells(row: FitRow) -> list[str]:
    target = f"{'≥ ' if row.at_least else ''}{_number(row.target)}"
    missed = "MISSED" if row.num_sessions >= MIN_SESSIONS else "too few to judge"
    verdict = "" if row.is_met else missed
    return [row.quantity, row.statistic, target, _number(row.reached), f"{row.ratio:.3f}", verdict]


def _rows(samples: Samples, shape: Shape) -> Iterator[FitRow]:
    target = TARGETS[shape]
    for quantity, statistics in target.statistics.items():
        values = getattr(samples, quantity)
        for name, value in statistics.items():
            yield FitRow(quantity, name, value, statistic(values, name))
    if target.invalidating_share:
        many = [value > MANY_TOKENS for value in samples.invalidated]
        share = statistic(many, "mean")
        name = f"share over {MANY_TOKENS}"
        yield FitRow("invalidated", name, target.invalidating_share, share, at_least=True)


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
