"""How long each session is and when its chunks come, at the published scale. Pure.

Each quantity has its published distribution. Three of them are bound together:
the retrieval time is the time to the first chunk plus all gaps. So gaps are drawn
first, and retrieval times are handed out at random among those that are long enough; what
a session's gaps leave of its retrieval time passes before its first chunk. Longer
prompts have more chunks, with some noise. No other dependence is modelled,
since nothing is published about any.

The published counts take the search that a crawl begins with for a chunk, and the time from its end
to the first page for a gap (4,322 crawls have 29,656 gaps, one less than chunks). So a
crawl of n chunks has n - 1 pages here.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from math import exp, log
from statistics import NormalDist

from stream2llm.workload.traces.format import Shape
from stream2llm.workload.traces.targets import TARGETS

# Where the ends of a distribution are; beyond them it has no more values.
LOWEST_P, HIGHEST_P = 0.001, 0.999
# Correlation of the ranks of prompt length and number of chunks; judgement.
TOKENS_WITH_CHUNKS = 0.5
# A first chunk needs some time; judgement.
SHORTEST_FIRST_S = 0.1
_SCORE = NormalDist().inv_cdf


class Quantiles:
    """A distribution from a few of its quantiles: monotone through the given points.

    Between two quantiles it is log-normal: the logarithm of the value is linear in
    the normal score of the probability. The published sizes are close to log-normal,
    and this way each quantile of a table is met without a fit that misses all of
    them a little.
    """

    def __init__(self, points: Mapping[float, float]) -> None:
        known = sorted(points.items())
        self._scores = [_SCORE(p) for p, _ in known]
        self._logs = [log(value) for _, value in known]
        if self._logs != sorted(self._logs) or len(known) < 2:
            raise ValueError(f"quantiles must grow: {known}")

    def value(self, p: float) -> float:
        """The quantile of a probability in (0, 1)."""
        scores, logs = self._scores, self._logs
        score = min(max(_SCORE(p), scores[0]), scores[-1])
        right = min(max(bisect_right(scores, score), 1), len(scores) - 1)
        share = (score - scores[right - 1]) / (scores[right] - scores[right - 1])
        return exp(logs[right - 1] + share * (logs[right] - logs[right - 1]))

    def sample(self, count: int, rng: random.Random) -> list[float]:
        """So many values in random order, one from each of `count` equal slices.

        Slices rather than independent draws: some hundred queries then have the
        quantiles too, and two seeds differ in who gets what, not in the load.
        """
        values = [self.value((number + _inner(rng)) / count) for number in range(count)]
        rng.shuffle(values)
        return values


def _inner(rng: random.Random) -> float:
    """Uniform, and away from 0 and 1, which have no score."""
    return min(max(rng.random(), 1e-9), 1 - 1e-9)


@dataclass(frozen=True, slots=True)
class Plan:
    """One session before it has documents."""

    # Tokens of the whole prompt.
    num_tokens: int
    # When each chunk comes, after the arrival; the last one brings the seal.
    times_s: tuple[float, ...]
    # When the first gap begins: at the end of a crawl's search, at a vector search's arrival.
    begun_s: float = 0.0

    def delayed(self, factor: float) -> Plan:
        """All that passes after the beginning takes so many times as long.

        As the published experiments with slow sources have it: pages of a crawl come
        later, its search does not; of a vector search everything does.
        """
        begun_s = self.begun_s
        return replace(self, times_s=tuple(begun_s + factor * (t - begun_s) for t in self.times_s))


@dataclass(frozen=True, slots=True)
class _Rest:
    """What the table leaves open: ends, and the width of the chunk counts.

    Chosen so that the published means are met; `fit` shows how well. The lowest gaps are
    published. So are the highest (34.9 and 8.9 s), which are those of 1 in 30,000, beyond
    the highest quantile that is drawn here.
    """

    tokens: tuple[float, float]
    retrieval_s: tuple[float, float]
    gap_ms: tuple[float, float]
    chunks: Mapping[float, float]


_RESTS: Mapping[Shape, _Rest] = {
    "crawler": _Rest(
        tokens=(400, 60_000),
        retrieval_s=(2.0, 30.0),
        gap_ms=(3, 10_000),
        chunks={LOWEST_P: 1, 0.05: 4, 0.5: 8, 0.95: 12, HIGHEST_P: 17},
    ),
    "anns": _Rest(
        tokens=(1_500, 131_072),
        retrieval_s=(0.9, 25.0),
        gap_ms=(0.21, 4_000),
        chunks={LOWEST_P: 1, 0.05: 2, 0.5: 4, 0.95: 8, HIGHEST_P: 26},
    ),
}


def plans(shape: Shape, count: int, rng: random.Random, *, gap_factor: float = 1.0) -> list[Plan]:
    """So many sessions of a shape, in random order.

    With a factor, gaps are so many times as long and retrieval times are not: less passes
    before the first chunk.
    """
    rest = _RESTS[shape]
    chunks = [round(each) for each in Quantiles(rest.chunks).sample(count, rng)]
    gap_values = _published(shape, "gap_ms", rest.gap_ms).sample(sum(chunks) - count, rng)
    gaps = _dealt((gap_factor * each / 1000 for each in gap_values), chunks)
    retrieval = _published(shape, "retrieval_s", rest.retrieval_s).sample(count, rng)
    tokens = _published(shape, "tokens", rest.tokens).sample(count, rng)
    lasts = long_enough(retrieval, [sum(each) for each in gaps], rng)
    sizes = coupled(tokens, chunks, TOKENS_WITH_CHUNKS, rng)
    make = _crawl if shape == "crawler" else Plan
    return [
        make(round(size), _times(between, last))
        for size, between, last in zip(sizes, gaps, lasts, strict=True)
    ]


def _crawl(num_tokens: int, times_s: tuple[float, ...]) -> Plan:
    """The first time is the end of the search; a crawl has one page at least."""
    return Plan(num_tokens, times_s[1:] or times_s, times_s[0])


def long_enough(totals: Sequence[float], parts: Sequence[float], rng: random.Random) -> list[float]:
    """The totals in an order in which each is at least its part, where that can be.

    The largest part chooses first, at random among all totals that are large
    enough for it: whatever it takes, no smaller part has less to choose from
    than it needs. Where no total is large enough, the largest one left is given.
    """
    rising, fitting = sorted(totals), list[float]()
    chosen = [0.0] * len(parts)
    for index in sorted(range(len(parts)), key=parts.__getitem__, reverse=True):
        needed = parts[index] + SHORTEST_FIRST_S
        while rising and (rising[-1] >= needed or not fitting):
            fitting.append(rising.pop())
        number = rng.randrange(len(fitting))
        fitting[number], fitting[-1] = fitting[-1], fitting[number]
        chosen[index] = fitting.pop()
    return chosen


def coupled(
    values: Sequence[float], keys: Sequence[float], strength: float, rng: random.Random
) -> list[float]:
    """The values in an order that follows `keys`, strictly at 1, not at all at 0."""
    by_key = sorted(range(len(keys)), key=lambda index: (keys[index], rng.random()))
    noisy = [0.0] * len(keys)
    for rank, index in enumerate(by_key):
        score = _SCORE((rank + 0.5) / len(keys))
        noisy[index] = strength * score + (1 - strength**2) ** 0.5 * rng.gauss(0, 1)
    placed = [0.0] * len(keys)
    order = sorted(range(len(keys)), key=noisy.__getitem__)
    for index, value in zip(order, sorted(values), strict=True):
        placed[index] = value
    return placed


def _published(shape: Shape, quantity: str, ends: tuple[float, float]) -> Quantiles:
    table = TARGETS[shape].statistics[quantity]
    points = {int(name[1:]) / 100: value for name, value in table.items() if name.startswith("P")}
    return Quantiles(points | {LOWEST_P: ends[0], HIGHEST_P: ends[1]})


def _dealt(gaps: Iterator[float], chunks: Sequence[int]) -> list[list[float]]:
    """One gap less than chunks for each session."""
    return [list(islice(gaps, count - 1)) for count in chunks]


def _times(gaps: Sequence[float], last_s: float) -> tuple[float, ...]:
    """Chunk times that end at `last_s`; gaps shrink if they would not fit."""
    room, total = last_s - SHORTEST_FIRST_S, sum(gaps)
    shrink = min(1.0, max(room, 0.0) / total) if total else 1.0
    first = last_s - shrink * total
    return tuple(accumulate((shrink * gap for gap in gaps), initial=first))
