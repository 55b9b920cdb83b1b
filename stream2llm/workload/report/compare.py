"""One system against the others, percentile by percentile. Pure.

Only runs of the same trace at the same load are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from stream2llm.workload.records import RunRecord
from stream2llm.workload.report.intervals import RatioInterval, ratio_interval
from stream2llm.workload.report.summary import latencies, request_rate

# One value a session: gaps between tokens of one answer are not independent, and
# would make intervals look narrow.
COMPARED: Final = ("ttft", "ttft_from_due", "ttft_from_open", "tpot", "e2el")
COMPARED_PERCENTILES: Final = (50.0, 95.0, 99.0)
# Rates of the same trace that differ by less are the same load.
_SAME_RATE = 0.01
# In RunRecord.settings, how the trace was made; two of the same name may differ in it.
PROVENANCE: Final = "trace_provenance"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one percentile of one latency compares."""

    ours: str
    theirs: str
    trace: str
    # Sessions a second; None when the trace has no rate.
    request_rate: float | None
    latency: str
    percentile: float
    interval: RatioInterval
    # Sessions without a whole answer, which have no latency to compare.
    our_failed: int
    their_failed: int


def compare(runs: Sequence[RunRecord], ours: str) -> list[Comparison]:
    """Each run of the system `ours` with each run of another one under the same load."""
    return [
        comparison
        for our_run in runs
        for their_run in runs
        if our_run.system == ours and their_run.system != ours and same_load(our_run, their_run)
        for comparison in _comparisons(our_run, their_run)
    ]


def same_load(one: RunRecord, other: RunRecord) -> bool:
    """Whether both replayed the same trace equally fast."""
    rates = request_rate(one), request_rate(other)
    if not _same_trace(one, other) or rates[0] is None or rates[1] is None:
        return _same_trace(one, other) and rates[0] == rates[1]
    return abs(rates[0] - rates[1]) <= _SAME_RATE * max(rates[0], rates[1])


def _same_trace(one: RunRecord, other: RunRecord) -> bool:
    made = {run.settings[PROVENANCE] for run in (one, other) if PROVENANCE in run.settings}
    return one.trace == other.trace and len(made) <= 1


def _comparisons(our_run: RunRecord, their_run: RunRecord) -> Iterator[Comparison]:
    for name in COMPARED:
        ours, theirs = latencies(our_run, name), latencies(their_run, name)
        if not ours or not theirs:
            continue
        for percent in COMPARED_PERCENTILES:
            yield Comparison(
                ours=our_run.system,
                theirs=their_run.system,
                trace=our_run.trace,
                request_rate=request_rate(our_run),
                latency=name,
                percentile=percent,
                interval=ratio_interval(ours, theirs, percent),
                our_failed=_failed(our_run),
                their_failed=_failed(their_run),
            )


def _failed(run: RunRecord) -> int:
    return sum(bool(session.error) for session in run.sessions)
