"""The cost model of one profile: data in, seconds out.

`recompute_s` is the difference of two values of one curve: the seconds that [0, n) takes
from nothing, in steps of the profile's budget. So it is exactly additive (evicting a
tail block by block costs as much as evicting it at once) and never falls when more is
computed. It is the time that the tokens add to an engine that has other work for the
rest of a step, as an engine under memory pressure has; alone in their step a few tokens
take longer. The first tokens of a sequence bear the fixed cost of the step in which they
were measured.

Swaps are priced per copy: two copies of n blocks cost a fixed part more than one of 2n.
"""

from __future__ import annotations

from cost_profiles.curve import recompute_curve, step_fixed_s, swap_curve
from cost_profiles.types import CostProfile


class CostModel:
    """Answers `Costs` from a profile that `check` accepts."""

    def __init__(self, profile: CostProfile) -> None:
        self.profile = profile
        self._recompute = recompute_curve(profile.recompute.points)
        self._step_fixed_s = step_fixed_s(profile.recompute)
        self._swap_out = swap_curve(profile.swap_out.points)
        self._swap_in = swap_curve(profile.swap_in.points)

    def recompute_s(self, from_token: int, to_token: int) -> float:
        """Returns the seconds to compute tokens [from, to) with [0, from) as context."""
        if not 0 <= from_token <= to_token:
            raise ValueError(f"invalid range of tokens: [{from_token}, {to_token})")
        if from_token == to_token:
            return 0.0
        return self._recompute.at(to_token) - self._recompute.at(from_token)

    @property
    def step_fixed_s(self) -> float:
        """Seconds of a step that do not depend on what it computes; 0 where no points show them."""
        return self._step_fixed_s

    def swap_out_s(self, num_blocks: int) -> float:
        """Returns the seconds to copy blocks to the host."""
        return self._swap_out.at(_checked(num_blocks))

    def swap_in_s(self, num_blocks: int) -> float:
        """Returns the seconds to copy blocks back."""
        return self._swap_in.at(_checked(num_blocks))


def _checked(num_blocks: int) -> int:
    if num_blocks < 0:
        raise ValueError(f"invalid number of blocks: {num_blocks}")
    return num_blocks
