"""The duration of a simulated step, and what production learns of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cost_profiles.correction import CorrectedCostModel, is_recompute_sample, is_swap_sample
from cost_profiles.types import Costs
from stream2llm.simulator.prefill_settings import Counters, PrefillSettings
from stream2llm.simulator.steps import Range

# Seconds of a step that computes these ranges.
StepSeconds = Callable[[Sequence[Range]], float]


class StepTime:
    """`compute_s` and `truth` are what steps and copies take, `beliefs` what is corrected."""

    def __init__(
        self,
        settings: PrefillSettings,
        compute_s: StepSeconds,
        truth: Costs,
        beliefs: CorrectedCostModel,
        counters: Counters,
    ) -> None:
        self.compute_s = compute_s
        self.truth = truth
        self._token_budget = settings.token_budget
        self._overlaps = settings.overlaps
        self._beliefs = beliefs
        self._counters = counters

    def step(self, ranges: Sequence[Range], outs: Sequence[int], ins: Sequence[int]) -> float:
        """Returns the step's seconds; `outs` and `ins` are the blocks of its copies."""
        compute_s = self.compute_s(ranges)
        out_s = sum(map(self.truth.swap_out_s, outs))
        in_s = sum(map(self.truth.swap_in_s, ins))
        copy_s = out_s + in_s
        seconds = max(compute_s, copy_s) if self._overlaps else compute_s + copy_s
        self._counters.steps += 1
        self._counters.busy_s += seconds
        self._learn(ranges, seconds if self._overlaps else compute_s)
        if is_swap_sample(sum(outs)):
            self._beliefs.observe_swap_out(sum(outs), out_s)
        if is_swap_sample(sum(ins)):
            self._beliefs.observe_swap_in(sum(ins), in_s)
        return seconds

    def _learn(self, ranges: Sequence[Range], seconds: float) -> None:
        """Where copies are made beside the step, production cannot tell them from it."""
        num_tokens = sum(stop - start for start, stop in ranges)
        if is_recompute_sample(num_tokens, self._token_budget):
            self._beliefs.observe_step(ranges, seconds)
