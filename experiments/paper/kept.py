"""Outcomes of cells of the paper's grid, kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cost_profiles.decision import Mode
from experiments.kept import KeptFigures
from experiments.paper.runs import Cell


@dataclass(frozen=True, slots=True)
class Outcome:
    """A simulated cell. Seconds by the names of QUANTILES, and "mean"."""

    cell: Cell
    ttft_s: Mapping[str, float]
    counters: Mapping[str, float]

    @property
    def num_evictions(self) -> float:
        """Times that KV was taken from a session."""
        return self.counters["recomputed_victims"] + self.counters["swapped_victims"]


class KeptOutcomes:
    """The outcomes of cells so far; see `KeptFigures`."""

    def __init__(self, path: Path | None) -> None:
        """Raises ValueError where the file is no JSON."""
        self._kept = KeptFigures(path)

    def get(self, cell: Cell) -> Outcome | None:
        """The outcome of that cell, or of the same in another mode of preemption without evictions."""
        found = self._get(cell)
        if found is not None:
            return found
        for mode in Mode:
            other = self._get(replace(cell, setting=replace(cell.setting, mode=mode)))
            if other is not None and not other.num_evictions:
                return replace(other, cell=cell)
        return None

    def _get(self, cell: Cell) -> Outcome | None:
        found = self._kept.get(cell)
        return None if found is None else Outcome(cell, **found)

    def add(self, outcome: Outcome) -> None:
        """Keeps it, on disk before this returns."""
        figures = {"ttft_s": dict(outcome.ttft_s), "counters": dict(outcome.counters)}
        self._kept.add(outcome.cell, figures)
