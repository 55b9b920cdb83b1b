"""What the command line chose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.baselines.cells import LOAD_NAMES, SHAPES, Comparison, LoadName
from stream2llm.models.store import PresetName
from stream2llm.workload.traces.format import Shape

# 402 of a cell.
FULL_SESSIONS, FULL_REPETITIONS = 134, 3
QUICK_SESSIONS, QUICK_REPETITIONS = 40, 1
# With so few sessions all would be open at once: retrieval takes a quarter of the time.
QUICK_RETRIEVAL = 0.25
COMPARISONS: tuple[Comparison, ...] = ("engine", "whole")


@dataclass(frozen=True, slots=True)
class Options:
    """All that decides what is run."""

    output: Path
    model: PresetName
    policies: tuple[str, ...]
    num_sessions: int = FULL_SESSIONS
    repetitions: int = FULL_REPETITIONS
    # On the time that retrieval takes, beside what keeps the paper's ratio to prefill.
    retrieval_factor: float = 1.0
    comparisons: tuple[Comparison, ...] = COMPARISONS
    shapes: tuple[Shape, ...] = SHAPES
    loads: tuple[LoadName, ...] = LOAD_NAMES
    # The driver's; engines that are compared one by one share the second.
    cores: tuple[int, int] = (0, 1)
