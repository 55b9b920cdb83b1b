"""Online calibration of a profile: one factor per curve, learned from observed times.

A factor f means that the device takes f times as long as the profile predicts. Each
observation compares actual with predicted seconds and moves log f towards the log of
their ratio:

    log f += gain * clip(log(actual / predicted) - log f, -CLIP, +CLIP)

The log gives twice as slow and twice as fast the same distance. The clip makes it
robust: any observation moves the factor by at most exp(GAIN * CLIP), about 10 %, and
many of them pull it towards the median rather than the mean. The price is that a
profile wrong by 5 x needs time: CALIBRATION_OBSERVATIONS without noise. Factors never leave
[1 / BOUND, BOUND]: a device beyond that needs another profile, not a larger factor.

Only large enough work is informative. A step of few tokens is mostly the fixed cost of
a step, which the curve does not charge to the tokens of a busy engine (see `model`);
learned from such steps, the factor would be far too high. Hence `is_recompute_sample`
and `is_swap_sample`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log
from typing import NamedTuple

from cost_profiles.types import CostProfile, Costs

BOUND = 20.0
GAIN = 0.2
CLIP = 0.5
# From an error of 5 x to within 10 %, without noise: 12 full moves of GAIN * CLIP, then 8
# that shrink by GAIN each.
CALIBRATION_OBSERVATIONS = 20
MIN_SWAP_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class Correction:
    """The calibration of one curve."""

    log_factor: float = 0.0
    num_observations: int = 0

    @property
    def factor(self) -> float:
        """Actual seconds per predicted second."""
        return exp(self.log_factor)

    def after(self, predicted_s: float, actual_s: float) -> Correction:
        """Returns the correction after one more observation.

        `predicted_s` is the profile's own, without any correction. A duration of zero,
        as a coarse clock may report, has no ratio and is left out.
        """
        if not (isfinite(predicted_s) and isfinite(actual_s)):
            raise ValueError(f"invalid durations: {predicted_s} s predicted, {actual_s} s observed")
        if predicted_s <= 0 or actual_s <= 0:
            return self
        surprise = log(actual_s) - log(predicted_s) - self.log_factor
        moved = self.log_factor + GAIN * _clipped(surprise, CLIP)
        return Correction(_clipped(moved, log(BOUND)), self.num_observations + 1)


def _clipped(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))


def is_recompute_sample(num_tokens: int, token_budget: int) -> bool:
    """Whether a step is full enough to learn from: half of its budget."""
    return 2 * num_tokens >= token_budget


def is_swap_sample(num_blocks: int) -> bool:
    """Whether a copy is large enough to learn from."""
    return num_blocks >= MIN_SWAP_BLOCKS


class Factors(NamedTuple):
    """The three factors as numbers, for metrics."""

    recompute: float
    swap_out: float
    swap_in: float


class Origin(NamedTuple):
    """The profile of a base model and its provenance, for metrics; empty without a profile."""

    # Device, model and tensor parallel size.
    profile: str = ""
    # How its prefill times came about: one of `types.Kind`.
    source: str = ""

    @classmethod
    def of(cls, profile: CostProfile) -> Origin:
        """Returns the origin of a profile's model."""
        parts = (profile.accelerator.name, profile.model.name, f"tp{profile.tensor_parallel_size}")
        return cls(" ".join(parts), profile.recompute.provenance.kind.value)


class CorrectedCostModel:
    """Answers `Costs` from a base model, corrected by observed times.

    The only owner of the three corrections.
    """

    def __init__(self, base: Costs, origin: Origin | None = None) -> None:
        self.base = base
        self.origin = origin or Origin()
        self.recompute = Correction()
        self.swap_out = Correction()
        self.swap_in = Correction()

    @property
    def factors(self) -> Factors:
        """The factors by which the base's answers are multiplied."""
        return Factors(self.recompute.factor, self.swap_out.factor, self.swap_in.factor)

    def recompute_s(self, from_token: int, to_token: int) -> float:
        """Returns the seconds to compute tokens [from, to) with [0, from) as context."""
        return self.recompute.factor * self.base.recompute_s(from_token, to_token)

    @property
    def step_fixed_s(self) -> float:
        """Seconds of a step that do not depend on what it computes."""
        return self.recompute.factor * self.base.step_fixed_s

    def swap_out_s(self, num_blocks: int) -> float:
        """Returns the seconds to copy blocks to the host."""
        return self.swap_out.factor * self.base.swap_out_s(num_blocks)

    def swap_in_s(self, num_blocks: int) -> float:
        """Returns the seconds to copy blocks back."""
        return self.swap_in.factor * self.base.swap_in_s(num_blocks)

    def observe_step(self, ranges: Sequence[tuple[int, int]], actual_s: float) -> None:
        """Learns from one engine step that computed these token ranges, of one session each."""
        predicted_s = sum(self.base.recompute_s(begin, end) for begin, end in ranges)
        self.recompute = self.recompute.after(predicted_s, actual_s)

    def observe_swap_out(self, num_blocks: int, actual_s: float) -> None:
        """Learns from one copy to the host."""
        self.swap_out = self.swap_out.after(self.base.swap_out_s(num_blocks), actual_s)

    def observe_swap_in(self, num_blocks: int, actual_s: float) -> None:
        """Learns from one copy back."""
        self.swap_in = self.swap_in.after(self.base.swap_in_s(num_blocks), actual_s)
