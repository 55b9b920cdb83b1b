"""When sessions arrive: a Poisson process, or what a file says.

Seconds after the beginning of the trace, in order. A load of 2 halves the time
between arrivals.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate, islice, repeat
from math import isfinite
from pathlib import Path

from bench.traces.check import TraceError


def poisson(rate: float, rng: random.Random) -> Iterator[float]:
    """Arrivals of `rate` sessions a second on average, without end."""
    return accumulate(rng.expovariate(rate) for _ in repeat(None))


def from_file(path: Path, load: float = 1.0) -> list[float]:
    """One arrival a line, the first of them at 0; raises TraceError naming the line.

    A line is a number of seconds or an ISO 8601 time (UTC when it names no
    zone); blank lines and those with # in front are left out.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    times: list[float] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        time_s = _seconds(text, f"{path}, line {number}")
        if times and time_s < times[-1]:
            raise TraceError(f"{path}, line {number}: {text} is before the line above it")
        times.append(time_s)
    return [(time_s - times[0]) / load for time_s in times]


def first(count: int, arrivals: Iterator[float] | list[float], source: str) -> list[float]:
    """So many of them; raises TraceError when there are less."""
    found = list(islice(arrivals, count))
    if len(found) < count:
        raise TraceError(f"{source}: has {len(found)} arrivals; {count} are needed")
    return found


def _seconds(text: str, where: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return _iso_seconds(text, where)
    if not isfinite(seconds):
        raise TraceError(f"{where}: {text!r} is no time")
    return seconds


def _iso_seconds(text: str, where: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        problem = f"{where}: {text!r} is neither seconds nor an ISO 8601 time"
        raise TraceError(problem) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
