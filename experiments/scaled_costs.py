"""Costs that are other ones by a factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cost_profiles.types import Costs
from stream2llm.simulator.steps import Range


@dataclass(frozen=True, slots=True)
class ScaledCosts:
    """Computing takes `recompute` times as long as in `base`, and copies `swap` times."""

    base: Costs
    recompute: float = 1.0
    swap: float = 1.0

    def step_s(self, ranges: Sequence[Range]) -> float:
        """A step: what its tokens add to an engine that has other work besides."""
        return sum(self.recompute_s(*each) for each in ranges)

    def recompute_s(self, from_token: int, to_token: int) -> float:
        return self.recompute * self.base.recompute_s(from_token, to_token)

    @property
    def step_fixed_s(self) -> float:
        return self.recompute * self.base.step_fixed_s

    def swap_out_s(self, num_blocks: int) -> float:
        return self.swap * self.base.swap_out_s(num_blocks)

    def swap_in_s(self, num_blocks: int) -> float:
        return self.swap * self.base.swap_in_s(num_blocks)
