"""When sessions arrive: a Poisson process, or what a file says.

Seconds after the beginning of the trace, in order. A load of 2 halves the time
between arrivals.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import accumulate, islice, repeat
from pathlib import Path

from stream2llm.workload.traces.check import TraceError

# The clock of recordings: whole nanoseconds. Seconds since 1970 as a float lose the seventh digit.
NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Largest time in seconds: beyond the year 9999, whatever it counts from.
_LONGEST_S = 10**12


def poisson(rate: float, rng: random.Random) -> Iterator[float]:
    """Arrivals of `rate` sessions a second on average, without end."""
    return accumulate(rng.expovariate(rate) for _ in repeat(None))


def from_file(path: Path, load: float = 1.0) -> list[float]:
    """One arrival a line, the first of them at 0; raises TraceError naming the line.

    A line is a number of seconds or an ISO 8601 time (UTC when it names no
    zone); blank lines and those with # in front are left out.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    times_ns: list[int] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        time_ns = _time_ns(text, f"{path}, line {number}")
        if times_ns and time_ns < times_ns[-1]:
            raise TraceError(f"{path}, line {number}: {text} is before the line above it")
        times_ns.append(time_ns)
    return [(time_ns - times_ns[0]) / NS / load for time_ns in times_ns]


def first(count: int, arrivals: Iterator[float] | list[float], source: str) -> list[float]:
    """So many of them; raises TraceError when there are less."""
    found = list(islice(arrivals, count))
    if len(found) < count:
        raise TraceError(f"{source}: has {len(found)} arrivals; {count} are needed")
    return found


def seconds_ns(text: str) -> int | None:
    """A number of seconds; None for other text; raises ValueError where the number is no time."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite() or abs(number) > _LONGEST_S:
        raise ValueError(f"{text!r} is no time")
    return round(number * NS)


def moment_ns(text: str) -> int:
    """An ISO 8601 time, since 1970; raises ValueError where it is none.

    In UTC when it names no zone. Nine digits of a fraction count, the others are cut off.
    """
    parts = re.fullmatch(r"(.+:\d\d)[.,](\d+)(.*)", text.strip())
    whole, fraction, zone = parts.groups() if parts else (text.strip(), "", "")
    moment = datetime.fromisoformat(whole + zone)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return since // timedelta(microseconds=1) * 1000 + int(fraction[:9].ljust(9, "0"))


def _time_ns(text: str, where: str) -> int:
    try:
        number_ns = seconds_ns(text)
    except ValueError as error:
        raise TraceError(f"{where}: {error}") from None
    try:
        return moment_ns(text) if number_ns is None else number_ns
    except ValueError:
        problem = f"{where}: {text!r} is neither seconds nor an ISO 8601 time"
        raise TraceError(problem) from None
