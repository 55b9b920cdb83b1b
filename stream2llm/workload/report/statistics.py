"""Percentiles of many values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Percentiles of every latency, in percent.
PERCENTILES: tuple[float, ...] = (50.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Statistics of the values of one quantity, in their unit."""

    count: int
    mean: float
    # The population's standard deviation, as numpy and vLLM compute it.
    std: float
    maximum: float
    # By percent; between two values it is interpolated.
    percentiles: Mapping[float, float]

    @property
    def median(self) -> float:
        """The 50th percentile."""
        return self.percentiles[50.0]


def distribution(values: Sequence[float]) -> Distribution | None:
    """The distribution of these values; None when there are none."""
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    found = np.percentile(array, PERCENTILES)
    return Distribution(
        count=len(values),
        mean=float(array.mean()),
        std=float(array.std()),
        maximum=float(array.max()),
        percentiles=dict(zip(PERCENTILES, map(float, found), strict=True)),
    )


def percent_word(percent: float) -> str:
    """As it stands in a key: 99.0 is "99", 99.9 is "99.9"."""
    return f"{percent:g}"
