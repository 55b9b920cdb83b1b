"""Seconds against size: straight between points, a fitted law beyond the last.

Straight lines join the measured points. Beyond the last one a line would be
wrong for prefill: each further token attends to all before it, so the time grows with
the square. Hence the law

    seconds ~ a + b * n + c * n^2

fitted to all points by least squares of the RELATIVE error (otherwise the longest run
alone would decide), with no coefficient below zero (otherwise noise could make more
work cost less). Copies have no quadratic part: c is left out for them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cost_profiles.types import RecomputePoint, RecomputeSection, SwapPoint

Knot = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """An increasing function with value 0 at 0."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    # Coefficients of the fitted law; at least one of them is above zero.
    per_unit_s: float
    per_square_s: float

    def at(self, size: float) -> float:
        """Returns the seconds for a size of 0 or more, which may be fractional."""
        last = self.sizes[-1]
        if size >= last:
            beyond = self.per_unit_s + self.per_square_s * (size + last)
            return self.seconds[-1] + (size - last) * beyond
        right = bisect_right(self.sizes, size)
        x0, x1 = self.sizes[right - 1], self.sizes[right]
        y0, y1 = self.seconds[right - 1], self.seconds[right]
        return y0 + (y1 - y0) * (size - x0) / (x1 - x0)


def recompute_curve(points: Iterable[RecomputePoint]) -> Curve:
    """Returns the seconds to compute [0, n) from nothing, against n."""
    return _through(recompute_knots(points), highest_power=2)


def step_fixed_s(section: RecomputeSection) -> float:
    """Returns what the line through the two shortest runs has left at no tokens, at least 0.

    Runs of several steps count this part several times, and say nothing of it here.
    """
    runs = recompute_knots(section.points)[1:3]
    if len(runs) < 2 or runs[1][0] > section.token_budget:
        return 0.0
    (n0, s0), (n1, s1) = runs
    return max(s0 - n0 * (s1 - s0) / (n1 - n0), 0.0)


def swap_curve(points: Iterable[SwapPoint]) -> Curve:
    """Returns the seconds to copy n blocks, against n."""
    knots = [(0, 0.0), *((point.num_blocks, point.seconds) for point in points)]
    return _through(knots, highest_power=1)


def recompute_knots(points: Iterable[RecomputePoint]) -> list[Knot]:
    """Joins points into one curve from nothing: a point begins where another one ends."""
    seconds_to = {0: 0.0}
    for point in points:
        seconds_to[point.end] = seconds_to[point.num_context_tokens] + point.seconds
    return list(seconds_to.items())


def _through(knots: Sequence[Knot], highest_power: int) -> Curve:
    _, per_unit_s, per_square_s = fit_law(knots[1:], highest_power)
    sizes, seconds = zip(*knots, strict=True)
    return Curve(tuple(sizes), tuple(seconds), per_unit_s, per_square_s)


def fit_law(knots: Sequence[Knot], highest_power: int) -> tuple[float, float, float]:
    """Returns (a, b, c) of the law above; c is 0 for `highest_power` 1.

    Non-negative least squares over at most three columns: every subset of them is solved
    without the constraint, and the best solution that satisfies it wins. A line through
    the origin always does.
    """
    sizes, seconds = np.array(knots, dtype=float).T
    scale = sizes.max()  # avoids rounding errors in powers of large sizes
    columns = np.stack([(sizes / scale) ** k / seconds for k in range(highest_power + 1)], axis=1)
    best, best_error = np.zeros(3), np.inf
    for chosen in _growing_subsets(highest_power):
        found, *_ = np.linalg.lstsq(columns[:, chosen], np.ones(len(sizes)), rcond=None)
        error = float(np.sum((columns[:, chosen] @ found - 1) ** 2))
        if found.min() > 0 and error < best_error:
            best, best_error = np.zeros(3), error
            best[list(chosen)] = found
    a, b, c = (best / scale ** np.arange(3)).tolist()
    return a, b, c


def _growing_subsets(highest_power: int) -> Iterable[list[int]]:
    """Yields sets of powers that are not just the constant; small ones win ties."""
    powers = range(highest_power + 1)
    for count in powers:
        for chosen in combinations(powers, count + 1):
            if chosen != (0,):
                yield list(chosen)
