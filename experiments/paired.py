"""Confidence intervals of the difference between two systems, over runs with equal seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from statistics import fmean, stdev

# Student's t for a two-sided 95 % interval, by degrees of freedom.
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


def interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean difference of pairs; without end for a single pair."""
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    if len(differences) < 2:
        return -inf, inf
    t95 = _T95[len(differences) - 2] if len(differences) - 2 < len(_T95) else 2.09
    reach = t95 * stdev(differences) / sqrt(len(differences))
    return fmean(differences) - reach, fmean(differences) + reach


def excess(
    ours: Sequence[float], theirs: Sequence[float], allowed: float = 1.0
) -> tuple[float, float]:
    """The 95 % interval of ours beyond so many times theirs; of a single pair the difference itself."""
    most = [allowed * each for each in theirs]
    return interval(ours, most) if len(most) > 1 else (ours[0] - most[0],) * 2
