"""Decides when to swap KV although recomputing is believed to cost less. Pure.

Every engine computes steps, so their cost is always measured. Copies that a wrong
profile makes too expensive would never be made, and the error never be found. So one
of many victims is copied all the same. The spacing of such trials is shortest while
copies turn out cheaper than believed, and doubles each time they do not.
"""

from __future__ import annotations

from cost_profiles.decision import Reason
from prefill_worker.types import SwapChoice

# Spacing of trials, in victims that were recomputed because that is believed cheaper.
MIN_SPACING, MAX_SPACING = 16, 1024
# A copy is a surprise if it takes less than this share of the believed time.
SURPRISE = 0.7


class Trials:
    """Counts decisions, and decides when a trial is due."""

    def __init__(self) -> None:
        self._spacing = MIN_SPACING
        self._num_since = 0

    @property
    def is_due(self) -> bool:
        """Whether the next victim that is large enough to learn from is to be copied."""
        return self._num_since >= self._spacing

    def note(self, choice: SwapChoice) -> None:
        """Counts what was chosen for a victim."""
        if choice.num_blocks:
            self._num_since = 0
        elif choice.reason is Reason.CHEAPER:
            self._num_since += 1

    def observe(self, believed_s: float, actual_s: float) -> None:
        """Adapts the spacing to the actual duration of a copy."""
        if actual_s < SURPRISE * believed_s:
            self._spacing = MIN_SPACING
        else:
            self._spacing = min(2 * self._spacing, MAX_SPACING)
