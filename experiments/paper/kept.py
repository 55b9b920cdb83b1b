"""Outcomes of simulated cells, kept in a file so that a long run is done in pieces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cost_profiles.decision import Mode
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
    """The outcomes of cells so far; without a file they are in memory only.

    The file knows cells, not the code that simulated them: one that is older than a change of
    the scheduler or the simulator has to be deleted.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises ValueError where the file is no JSON."""
        self._path = path
        # By all that a cell says.
        self._found: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._found = json.loads(path.read_text())

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
        found = self._found.get(repr(cell))
        return None if found is None else Outcome(cell, **found)

    def add(self, outcome: Outcome) -> None:
        """Keeps it, on disk before this returns."""
        figures = {"ttft_s": dict(outcome.ttft_s), "counters": dict(outcome.counters)}
        self._found[repr(outcome.cell)] = figures
        if self._path is not None:
            part = self._path.with_name(f".{self._path.name}.part")
            part.write_text(json.dumps(self._found, indent=0))
            part.replace(self._path)
