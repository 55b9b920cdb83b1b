"""A distribution from a few of its quantiles. Pure.

Between two quantiles it is log-normal: the logarithm of the value is linear in
the normal score of the probability. The published sizes are close to log-normal,
and this way each quantile of a table is met without a fit that misses all of
them a little.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Mapping
from math import exp, log
from statistics import NormalDist

# Where the ends of a distribution are; beyond them it has no more values.
LOWEST_P, HIGHEST_P = 0.001, 0.999
_SCORE = NormalDist().inv_cdf


class Quantiles:
    """Monotone through the given points, probability to positive value."""

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
