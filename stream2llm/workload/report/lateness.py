"""Judges if the load generator kept up with the trace. Pure.

A generator that is late offers less load than it says, and sees answers later
than they came. Two things tell: how much later than due it submitted what
nothing else held back (in each session), and how late its event loop was to do
anything at all, which a probe measured during the whole run.
"""

from __future__ import annotations

from typing import Final

from stream2llm.workload.report.summary import Summary

# In RunRecord.counters, seconds; a runner without an event loop leaves them out.
LOOP_LAG_P99: Final = "loop_lag_p99_s"
LOOP_LAG_MAX: Final = "loop_lag_max_s"
# What the figures of a report bear: so long, or so much of the median TTFT.
TOLERATED_S: Final = 0.010
TOLERATED_SHARE: Final = 0.05


def generator_lateness_s(summary: Summary) -> float:
    """The 99th percentile by which the generator itself was late."""
    found = summary.latencies_s["generator_lateness"]
    of_events = found.percentiles[99.0] if found else 0.0
    return max(of_events, summary.counters.get(LOOP_LAG_P99, 0.0))


def tolerated_s(summary: Summary) -> float:
    """How late it may be before the figures are in doubt."""
    ttft = summary.latencies_s["ttft"]
    return max(TOLERATED_S, TOLERATED_SHARE * ttft.median if ttft else 0.0)


def lateness_warning(summary: Summary) -> str:
    """One sentence for people; empty when the generator kept up."""
    late_s, allowed_s = generator_lateness_s(summary), tolerated_s(summary)
    if late_s <= allowed_s:
        return ""
    return (
        f"The load generator itself was late: {late_s * 1e3:,.1f} ms at P99, more than the "
        f"{allowed_s * 1e3:,.1f} ms that these figures bear. Latencies of {summary.system} hold "
        "its delay too; replay with less load, or from a machine with more free cores."
    )
