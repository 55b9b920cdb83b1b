"""The points of the plots. Pure; what is not drawn here is tested here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from stream2llm.workload.records import RunRecord, Sample
from stream2llm.workload.report.statistics import distribution
from stream2llm.workload.report.summary import latencies, request_rate

# More than a plot can show; files stay small whatever the run's length.
MAX_POINTS = 1000


class Line(NamedTuple):
    """One line of a plot."""

    x: Sequence[float]
    y: Sequence[float]


class LoadPoint(NamedTuple):
    """TTFT of one run at its load."""

    # Sessions a second that the trace asked for.
    request_rate: float
    ttft_s: float
    # Sessions without an answer: their TTFT is missing in the percentile.
    failed: int


def ccdf(values: Sequence[float]) -> Line:
    """For each value the share of values that are at least as large; 1 for the least.

    Where there are many values, those are kept whose ranks from the top are spread evenly on
    a logarithmic axis, so that the tail is whole.
    """
    ordered, count = np.sort(np.asarray(values, dtype=np.float64)), len(values)
    from_top = np.arange(1, count + 1)
    if count > MAX_POINTS:
        from_top = np.unique(np.geomspace(1, count, MAX_POINTS).round().astype(np.intp))
    ranks = from_top[::-1]
    return Line(ordered[count - ranks].tolist(), (ranks / count).tolist())


def ttft_by_load(runs: Iterable[RunRecord], percentile: float) -> list[LoadPoint]:
    """A point for each run that has a load and a TTFT, by rising load."""
    points = []
    for run in runs:
        rate, found = request_rate(run), distribution(latencies(run, "ttft"))
        if rate is not None and found is not None:
            failed = sum(bool(session.error) for session in run.sessions)
            points.append(LoadPoint(rate, found.percentiles[percentile], failed))
    return sorted(points)


def thinned(samples: Sequence[Sample]) -> list[Sample]:
    """At most MAX_POINTS of them: of each stretch the one with the fullest KV memory.

    Peaks are what one looks for in a timeline, so they must not be averaged away.
    """
    stretch = -(-len(samples) // MAX_POINTS) or 1
    parts = (samples[begin : begin + stretch] for begin in range(0, len(samples), stretch))
    return [max(part, key=lambda sample: sample.kv_usage) for part in parts]


def run_labels(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each run: the system, with its load or number where that is not enough."""
    systems = [run.system for run in runs]
    labels = [_label(run, alone=systems.count(run.system) == 1) for run in runs]
    return [
        label if labels.count(label) == 1 else f"{label} #{labels[:place].count(label) + 1}"
        for place, label in enumerate(labels)
    ]


def _label(run: RunRecord, *, alone: bool) -> str:
    rate = request_rate(run)
    return run.system if alone or rate is None else f"{run.system} at {rate:.3g}/s"
