"""Arrivals of a published recording: an Azure LLM inference trace, a CSV as it is published."""

from __future__ import annotations

import sys
from functools import lru_cache
from itertools import islice
from pathlib import Path

from stream2llm.workload.traces.check import TraceError
from stream2llm.workload.traces.format import Scale
from stream2llm.workload.traces.imports import BadRow
from stream2llm.workload.traces.requests import Streaming, azure_sessions


@lru_cache(maxsize=4)
def arrivals_s(path: Path, rate: float, most: int) -> list[float]:
    """When its first requests came, `most` at the most, in seconds from the first one.

    All times are divided by one factor, so that these requests come at `rate` a second on
    average. Raises TraceError where the file is none of these traces, or has no two moments.
    """
    bad: list[BadRow] = []
    sessions = azure_sessions(path, Scale(), Streaming(), bad.append)
    times_s = [each.arrival_s for each in islice(sessions, most)]
    if bad:
        print(f"{path}: {len(bad):,} rows left out, the first: {bad[0]}", file=sys.stderr)
    if not times_s or not times_s[-1]:
        raise TraceError(f"{path}: has no requests at different times")
    factor = rate * times_s[-1] / (len(times_s) - 1)
    return [each / factor for each in times_s]
