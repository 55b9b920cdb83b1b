"""Whether one system's percentile is really better than another's. Pure, seeded.

The 95 % interval of the ratio of two percentiles, by the percentile bootstrap:
both groups of values are drawn again with replacement, many times, and the
ratio of their percentiles has a distribution. It says what chance among these
values does to the ratio; it says nothing of chance between runs, and takes the
values for independent of each other.

No resample is ever made: of n uniform draws the k-th smallest has a beta
distribution, so the one or two order statistics that a percentile lies between
are drawn directly. That is exact, and costs the same for a million values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
_CONFIDENCE = 0.95
_NUM_RESAMPLES = 10_000


class Verdict(StrEnum):
    """Better and worse only where the interval excludes 1."""

    BETTER = "better"
    WORSE = "worse"
    EQUAL = "equal"


@dataclass(frozen=True, slots=True)
class RatioInterval:
    """Ours divided by theirs."""

    ratio: float
    low: float
    high: float
    verdict: Verdict


def ratio_interval(
    ours: Sequence[float],
    theirs: Sequence[float],
    percentile: float,
    *,
    higher_is_better: bool = False,
) -> RatioInterval:
    """The ratio of the percentile (0 to 100) of two groups of values, with its interval.

    By default smaller is better, as for latencies. Values must not be negative.
    Raises ValueError when a group is empty.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in (ours, theirs)]
    if not all(group.size for group in groups):
        raise ValueError("a ratio needs values on both sides")
    rng = np.random.default_rng(0)
    resampled = [_resampled(group, percentile, _NUM_RESAMPLES, rng) for group in groups]
    tail = (1 - _CONFIDENCE) / 2 * 100
    # Existing ratios: "lower" and "higher" never interpolate with an infinity.
    ratios = _ratios(*resampled)
    low = float(np.percentile(ratios, tail, method="lower"))
    high = float(np.percentile(ratios, 100 - tail, method="higher"))
    found = [np.percentile(group, [percentile]) for group in groups]
    ratio = float(_ratios(*found)[0])
    return RatioInterval(ratio, low, high, _verdict(low, high, higher_is_better))


def _verdict(low: float, high: float, higher_is_better: bool) -> Verdict:
    if low <= 1 <= high:
        return Verdict.EQUAL
    return Verdict.BETTER if (low > 1) == higher_is_better else Verdict.WORSE


def _resampled(
    values: Values, percentile: float, num_resamples: int, rng: np.random.Generator
) -> Values:
    """The percentile, interpolated as numpy does it, of each of so many resamples."""
    ordered, size = np.sort(values), values.size
    place = (size - 1) * percentile / 100
    lower = min(int(place), size - 1)
    # Where in (0, 1) the order statistic of uniform draws falls; then the next one,
    # the smallest of the draws that are above it.
    at = rng.beta(lower + 1, size - lower, num_resamples)
    found = ordered[_index(at, size)]
    if lower + 1 < size:
        above = at + (1 - at) * rng.beta(1, size - lower - 1, num_resamples)
        found = found + (place - lower) * (ordered[_index(above, size)] - found)
    return found


def _index(at: Values, size: int) -> NDArray[np.intp]:
    return np.minimum((at * size).astype(np.intp), size - 1)


def _ratios(ours: Any, theirs: Any) -> Values:
    """0 of 0 is 1: neither is better."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = ours / theirs
    return np.where((ours == 0) & (theirs == 0), 1.0, ratios)
