"""The published quantiles of the two workloads, as the paper and its artifact give them.

Crawler: the crawls that have a page, 4,309 of 4,322; the search that each begins with is a chunk
in the published counts, and none here. ANNS: lengths and times are those of the 500 queries that
were replayed, which are longer than others; chunks and gaps are those of all 4,997 traces, of
which 500 are not published by themselves.

Quantities are those of `measure.Samples`; names of statistics are mean, median,
min, max and P<percent>.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stream2llm.workload.traces.format import Shape

# A session that invalidates more than so many tokens counts in the share below.
MANY_TOKENS = 10_000


@dataclass(frozen=True, slots=True)
class Target:
    """What a trace of this shape has to look like."""

    num_queries: int
    # Quantity to statistic to value.
    statistics: Mapping[str, Mapping[str, float]]
    # At least this share of sessions invalidates MANY_TOKENS; 0: nothing is said.
    invalidating_share: float = 0.0


TARGETS: Mapping[Shape, Target] = {
    "crawler": Target(
        num_queries=4_309,
        statistics={
            "tokens": {"mean": 8_889, "P50": 5_749, "P75": 11_167, "P95": 28_372},
            "retrieval_s": {"mean": 9.22, "P50": 8.67, "P75": 11.06, "P95": 16.40},
            "chunks": {"mean": 6.86, "median": 7, "min": 1, "max": 16},
            "gap_ms": {
                "mean": 1053,
                "P5": 82,
                "P25": 387,
                "P50": 701,
                "P75": 1340,
                "P95": 3078,
                "P99": 5293,
            },
        },
    ),
    "anns": Target(
        num_queries=4_997,
        statistics={
            "tokens": {"mean": 13_006, "P50": 10_126, "P75": 14_615, "P95": 30_618},
            "retrieval_s": {"mean": 4.47, "P50": 3.90, "P75": 5.33, "P95": 8.51},
            "chunks": {"mean": 4.42, "median": 4, "min": 1, "max": 26},
            "gap_ms": {
                "mean": 157,
                "P5": 1.4,
                "P25": 11,
                "P50": 37,
                "P75": 124,
                "P95": 699,
                "P99": 2079,
            },
        },
        invalidating_share=0.10,
    ),
}
