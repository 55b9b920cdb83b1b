"""When sessions arrive: a Poisson process, one with bursts, or what a file says.

Seconds after the beginning of the trace, in order. A load of 2 halves the time
between arrivals.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import accumulate, islice, repeat
from pathlib import Path
from typing import Protocol

from stream2llm.workload.traces.check import TraceError

# The clock of recordings: whole nanoseconds. Seconds since 1970 as a float lose the seventh digit.
NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Largest time in seconds: beyond the year 9999, whatever it counts from.
_LONGEST_S = 10**12


class Process(Protocol):
    """A random process of arrivals."""

    def arrivals(self, rate: float, rng: random.Random) -> Iterator[float]:
        """Yields times in seconds without end, `rate` of them a second on average."""


@dataclass(frozen=True, slots=True)
class Poisson:
    """Sessions arrive independently of one another."""

    def arrivals(self, rate: float, rng: random.Random) -> Iterator[float]:
        """Gaps have an exponential distribution."""
        return accumulate(rng.expovariate(rate) for _ in repeat(None))


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gaps have a Gamma distribution and are independent: clusters of a few sessions."""

    # Coefficient of variation of the gaps; 1 is Poisson.
    cv: float

    def __str__(self) -> str:
        """As `process_of` reads it."""
        return f"gamma={self.cv!r}"

    def arrivals(self, rate: float, rng: random.Random) -> Iterator[float]:
        """The first session comes after a gap, too."""
        shape = 1 / self.cv**2
        return accumulate(rng.gammavariate(shape, 1 / (rate * shape)) for _ in repeat(None))


@dataclass(frozen=True, slots=True)
class Phases:
    """Sessions arrive in phases only, which alternate with silence; both have exponential lengths.

    The defaults are fitted to a code assistant's arrivals (Azure LLM inference trace 2023,
    code; 2.45 requests a second): counts of one second have 14.5 times the variance of a
    Poisson process, counts of ten seconds 82 times.
    """

    # Share of the time that lies in phases.
    share: float = 0.145
    # Mean length of a phase.
    mean_s: float = 5.7

    def __str__(self) -> str:
        """As `process_of` reads it, with the figures of the defaults too."""
        return f"phases={self.share!r},{self.mean_s!r}"

    def arrivals(self, rate: float, rng: random.Random) -> Iterator[float]:
        """Begins at any moment: in a phase with the probability of their share."""
        silence_s = self.mean_s * (1 - self.share) / self.share
        now_s = 0.0 if rng.random() < self.share else rng.expovariate(1 / silence_s)
        while True:
            end_s = now_s + rng.expovariate(1 / self.mean_s)
            while (now_s := now_s + rng.expovariate(rate / self.share)) < end_s:
                yield now_s
            now_s = end_s + rng.expovariate(1 / silence_s)

    def dispersion(self, rate: float, interval_s: float) -> float:
        """Variance to mean of the counts in intervals of that length; 1 for a Poisson process.

        Source: Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP)
        cookbook", 1993, for two states of which one is silent.
        """
        relaxation_s = self.mean_s * (1 - self.share)
        intervals = interval_s / relaxation_s
        settled = 1 - (1 - math.exp(-intervals)) / intervals
        return 1 + 2 * rate * relaxation_s * (1 - self.share) / self.share * settled


def process_of(text: str) -> Process:
    """`gamma=CV`, `phases` or `phases=SHARE,SECONDS`; raises TraceError for anything else."""
    name, _, given = text.partition("=")
    try:
        numbers = [float(each) for each in given.split(",")] if given else []
    except ValueError:
        numbers = [math.nan]
    match name, numbers:
        case "gamma", [cv] if 0.01 <= cv <= 100:
            return Gamma(cv)
        case "phases", []:
            return Phases()
        case "phases", [share, mean_s] if 0.001 <= share <= 0.999 and 0.001 <= mean_s <= 1e6:
            return Phases(share, mean_s)
    raise TraceError(
        f"bursts are {text!r}; they must be gamma=CV (0.01 to 100), phases, or "
        "phases=SHARE,SECONDS (0.001 to 0.999 of the time, 0.001 to 1,000,000 s)"
    )


def from_file(path: Path, load: float = 1.0) -> list[float]:
    """One arrival a line, the first of them at 0; raises TraceError naming the line.

    A line is a number of seconds or an ISO 8601 time (UTC when it names no
    zone); blank lines and those with # in front are left out.
    """
    times_ns: list[int] = []
    for where, text in _lines(path):
        time_ns = _time_ns(text, where)
        if times_ns and time_ns < times_ns[-1]:
            raise TraceError(f"{where}: {text} is before the line above it")
        times_ns.append(time_ns)
    return [(time_ns - times_ns[0]) / NS / load for time_ns in times_ns]


def from_delays(path: Path, load: float = 1.0) -> list[float]:
    """One delay a line, in seconds since the arrival before; raises TraceError naming the line.

    As the `poisson_delays_*.txt` of the paper's artifact: the first session arrives after the
    first delay. Blank lines and those with # in front are left out.
    """
    return list(accumulate(_delay_s(text, where) / load for where, text in _lines(path)))


def _delay_s(text: str, where: str) -> float:
    try:
        delay_ns = seconds_ns(text)
    except ValueError as error:
        raise TraceError(f"{where}: {error}") from None
    if delay_ns is None or delay_ns < 0:
        raise TraceError(f"{where}: {text!r} is no delay; it must be seconds, at least 0")
    return delay_ns / NS


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines with something in them, and where each is."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield f"{path}, line {number}", text


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
