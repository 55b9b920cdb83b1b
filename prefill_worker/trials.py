"""When to copy KV although computing it again is believed to cost less. Pure.

Steps are computed always, so what they cost is learned always. Copies that a
wrong profile makes too dear would never be made, and the error never be seen.
So one of so many victims is copied all the same. As long as copies turn out
cheaper than believed, soon again; each time they do not, half as often.
"""

from __future__ import annotations

from cost_profiles.decision import Reason
from prefill_worker.types import SwapChoice

# Victims that were computed again because that is believed cheaper.
MIN_SPACING, MAX_SPACING = 16, 1024
# A copy that takes less than this share of what was believed is a surprise.
SURPRISE = 0.7


class Trials:
    """Counts decisions; says when a trial is due."""

    def __init__(self) -> None:
        self._spacing = MIN_SPACING
        self._num_since = 0

    @property
    def is_due(self) -> bool:
        """Whether the next victim that is large enough to learn from is to be copied."""
        return self._num_since >= self._spacing

    def note(self, choice: SwapChoice) -> None:
        """This was chosen for a victim."""
        if choice.num_blocks:
            self._num_since = 0
        elif choice.reason is Reason.CHEAPER:
            self._num_since += 1

    def observe(self, believed_s: float, actual_s: float) -> None:
        """A copy took so long."""
        if actual_s < SURPRISE * believed_s:
            self._spacing = MIN_SPACING
        else:
            self._spacing = min(2 * self._spacing, MAX_SPACING)
