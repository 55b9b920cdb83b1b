"""How long a step takes. Pure.

    seconds = fixed + per token x tokens + per pair x (token, context token) pairs
              + per context token x context tokens that the step reads

A cost profile prices what tokens add to a full step; here the fixed part of
a step counts too, because most steps of an engine that streams are not full.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_profiles.curve import recompute_knots
from cost_profiles.types import CostProfile

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class StepLaw:
    """Seconds of a prefill step."""

    fixed_s: float
    per_token_s: float
    per_pair_s: float
    # Reading the KV in front of what is computed, once a step.
    per_context_token_s: float = 0.0

    def seconds(self, ranges: Iterable[Range]) -> float:
        """A step that computes these [from, to) of some sequences; 0 for none."""
        tokens = pairs = context = 0.0
        for start, stop in ranges:
            tokens += stop - start
            pairs += _pairs(start, stop)
            context += start
        if not tokens:
            return 0.0
        linear_s = self.per_token_s * tokens + self.per_context_token_s * context
        return self.fixed_s + linear_s + self.per_pair_s * pairs

    def seconds_to(self, num_tokens: int, token_budget: int) -> float:
        """One sequence from nothing, alone, in steps of so many tokens."""
        starts = range(0, num_tokens, token_budget)
        return sum(
            self.seconds([(start, min(start + token_budget, num_tokens))]) for start in starts
        )


def _pairs(start: int, stop: int) -> float:
    return (stop * (stop + 1) - start * (start + 1)) / 2


def law_of(profile: CostProfile) -> StepLaw:
    """The law that comes closest to a profile's points, by relative error; no part below zero."""
    knots = np.array(recompute_knots(profile.recompute.points)[1:], dtype=float)
    sizes, seconds = knots.T
    steps = np.ceil(sizes / profile.recompute.token_budget)
    columns = np.stack([steps, sizes, sizes * (sizes + 1) / 2], axis=1) / seconds[:, None]
    fixed, per_token, per_pair = _non_negative(columns)
    return StepLaw(fixed, per_token, per_pair)


def worst_error(law: StepLaw, profile: CostProfile) -> float:
    """The largest relative error at a point of the profile."""
    token_budget = profile.recompute.token_budget
    knots = recompute_knots(profile.recompute.points)[1:]
    return max(abs(law.seconds_to(size, token_budget) / seconds - 1) for size, seconds in knots)


def _non_negative(columns: NDArray[np.float64]) -> tuple[float, ...]:
    """Coefficients >= 0 whose weighted sum of columns is closest to 1 everywhere.

    Drops the most negative coefficient until none is; enough for three columns
    that all grow.
    """
    chosen = list(range(columns.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(columns[:, chosen], np.ones(len(columns)), rcond=None)
        if found.min() >= 0:
            break
        del chosen[int(found.argmin())]
    result = np.zeros(columns.shape[1])
    result[chosen] = found
    return tuple(result.tolist())
