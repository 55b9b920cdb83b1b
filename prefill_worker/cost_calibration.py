"""Calibrates the believed costs by the durations of steps and copies. Pure.

A copy's duration comes rank by rank: it counts when all ranks have finished, as the
slowest of them took.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cost_profiles.correction import CorrectedCostModel, is_recompute_sample, is_swap_sample
from cost_profiles.decision import Reason
from prefill_worker.report import SchedulerCounters
from prefill_worker.swap_jobs import CopyTime, Direction, keep_slowest
from prefill_worker.types import SwapChoice

# Spacing of trials, in victims that were recomputed because that is believed cheaper.
MIN_SPACING, MAX_SPACING = 16, 1024
# A copy is a surprise if it takes less than this share of the believed time.
SURPRISE = 0.7


class Trials:
    """Decides when to swap KV although recomputing is believed to cost less.

    Every engine computes steps, so their cost is always measured. Copies that a wrong
    profile makes too expensive would never be made, and the error never be found. So one
    of many victims is copied all the same. The spacing of such trials is shortest while
    copies turn out cheaper than believed, and doubles each time they do not.
    """

    def __init__(self) -> None:
        self._spacing = MIN_SPACING
        self._num_since = 0

    @property
    def is_due(self) -> bool:
        """True when the next victim that is large enough to learn from is to be copied."""
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


class CostCalibration:
    """The costs by which evictions are decided, corrected by what they turn out to be."""

    def __init__(
        self, costs: CorrectedCostModel, counters: SchedulerCounters, *, copies_block: bool
    ) -> None:
        """`copies_block`: whether the copies of a step make it take longer."""
        self.costs = costs
        self.trials = Trials()
        self._counters = counters
        self._copies_block = copies_block
        self._last_copies_s = 0.0
        # By batch, until all ranks have finished it.
        self._times: dict[int, CopyTime] = {}

    def note_times(self, times: Mapping[int, CopyTime]) -> None:
        """Takes the durations, by batch, that ranks have reported after a step."""
        keep_slowest(self._times, times)
        self._last_copies_s = sum(each.seconds for each in times.values())

    def end_batch(self, number: int) -> None:
        """All ranks have finished the job of this number, with which a batch may begin."""
        time = self._times.pop(number, None)
        if time is None:
            return
        if time.direction is Direction.OUT:
            self._counters.swap_out_s += time.seconds
        else:
            self._counters.swap_in_s += time.seconds
        if is_swap_sample(time.num_blocks):
            self._observe_copy(*time)

    def _observe_copy(self, direction: Direction, num_blocks: int, seconds: float) -> None:
        if direction is Direction.OUT:
            self.trials.observe(self.costs.swap_out_s(num_blocks), seconds)
            self.costs.observe_swap_out(num_blocks, seconds)
        else:
            self.trials.observe(self.costs.swap_in_s(num_blocks), seconds)
            self.costs.observe_swap_in(num_blocks, seconds)

    def observe_step(
        self, ranges: Sequence[tuple[int, int]], token_budget: int, seconds: float
    ) -> None:
        """Calibrates by the last step's duration and ranges of tokens, of one session each."""
        if self._copies_block:
            seconds -= self._last_copies_s
        if is_recompute_sample(sum(stop - start for start, stop in ranges), token_budget):
            self.costs.observe_step(ranges, seconds)
