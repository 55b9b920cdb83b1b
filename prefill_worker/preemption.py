"""Decides what becomes of a victim's KV, and what losing it costs. Pure; a part of phase 1.

Considers exactly the tail that a plan takes from one victim. It compares computing
that tail again with copying it out and back; blocks that the prefix cache would still
have, because other sessions hold them, cost nothing. Only full blocks are copied: the
tokens of a partly filled last block are computed again either way, and count for
neither.
"""

from __future__ import annotations

from dataclasses import dataclass

from cost_profiles.correction import is_swap_sample
from cost_profiles.decision import Action, Mode, Reason, cheaper
from cost_profiles.types import Costs
from prefill_worker.types import RequestView, SwapChoice


@dataclass(frozen=True, slots=True)
class Preemption:
    """How an engine preempts: the configured mode, and the costs of both ways."""

    mode: Mode
    costs: Costs
    block_size: int
    # A trial: the first victim that is large enough is copied whatever the costs say.
    tries_swap: bool = False

    def choose(
        self, view: RequestView, num_kept: int, num_found: int, num_slots: int
    ) -> SwapChoice:
        """Decides which blocks behind the first `num_kept` go to the host.

        The prefix cache would still have the first `num_found` of them. If the host
        has room for a part only, the front goes: the returning session needs that
        first.
        """
        if self.mode is Mode.RECOMPUTE:
            return SwapChoice(Reason.MODE)
        start, full = num_kept + num_found, view.num_computed_tokens // self.block_size
        stop = min(full, start + num_slots)
        if start >= full:
            return SwapChoice(Reason.CACHED if num_found and num_kept < full else Reason.NO_BLOCKS)
        if start >= stop:
            return SwapChoice(Reason.POOL_FULL)
        size = self.block_size
        choice = cheaper(self.costs, start * size, stop * size, stop - start, mode=self.mode)
        if choice.action is Action.SWAP:
            return SwapChoice(choice.reason, start, stop)
        if self.tries_swap and is_swap_sample(stop - start):
            return SwapChoice(Reason.TRIAL, start, stop)
        return SwapChoice(choice.reason)

    def seconds(self, view: RequestView, num_blocks: int) -> float:
        """Returns the cost of losing the last blocks and restoring them in the way of `mode`."""
        full = view.num_computed_tokens // self.block_size
        start = max(view.num_blocks - num_blocks, 0)
        recompute_s = self.costs.recompute_s(
            min(start * self.block_size, view.num_computed_tokens), view.num_computed_tokens
        )
        if self.mode is Mode.RECOMPUTE or start >= full:
            return recompute_s
        num_full = full - start
        swap_s = self.costs.swap_out_s(num_full) + self.costs.swap_in_s(num_full)
        return swap_s if self.mode is Mode.SWAP else min(recompute_s, swap_s)
