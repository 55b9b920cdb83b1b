"""Values for tests, with defaults for all that a test does not care about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cost_profiles.correction import CorrectedCostModel
from cost_profiles.decision import Mode
from prefill_worker.policy_loading import find_policy
from prefill_worker.preemption import Preemption
from prefill_worker.rank_index import RankIndex
from prefill_worker.types import BlockLedger, RequestView, StepLimits


@dataclass(frozen=True)
class LinearCosts:
    """Seconds that can be reckoned in the head."""

    token_s: float = 0.0
    step_fixed_s: float = 0.0
    # Cost of copying one block one way.
    block_s: float = 0.0
    # Fixed cost of each copy.
    copy_s: float = 0.0

    def recompute_s(self, from_token: int, to_token: int) -> float:
        return self.token_s * (to_token - from_token)

    def swap_out_s(self, num_blocks: int) -> float:
        return self.copy_s + self.block_s * num_blocks

    def swap_in_s(self, num_blocks: int) -> float:
        return self.copy_s + self.block_s * num_blocks


class FrozenCosts(CorrectedCostModel):
    """Learns nothing, so that a test knows what will be chosen."""

    def observe_step(self, ranges: Sequence[tuple[int, int]], actual_s: float) -> None:
        """Ignored."""

    def observe_swap_out(self, num_blocks: int, actual_s: float) -> None:
        """Ignored."""

    def observe_swap_in(self, num_blocks: int, actual_s: float) -> None:
        """Ignored."""


def a_preemption(
    mode: str = "recompute", costs: LinearCosts = LinearCosts(), block_size: int = 32
) -> Preemption:
    """How to preempt, and what both ways cost."""
    return Preemption(Mode(mode), costs, block_size)


# Costs by which no two victims differ.
BY_RANK = a_preemption()


def a_request(
    request_id: str = "a",
    *,
    sealed: bool = False,
    arrival: int = 1,
    last_event: int = 1,
    known: int = 0,
    computed: int = 0,
    num_blocks: int = 0,
    reached: int = 0,
    guard_number: int = 0,
    host_blocks: tuple[int, int] = (0, 0),
    is_loading: bool = False,
    is_answering: bool = False,
) -> RequestView:
    """A session as the planner sees it."""
    counts = (known, computed, num_blocks, reached, guard_number)
    view = RequestView(request_id, sealed, arrival, last_event, *counts, *host_blocks, is_loading)
    return view._replace(is_answering=is_answering)


def a_ranking(*views: RequestView, policy: str = "fcfs", guarded_first: bool = False) -> RankIndex:
    """Those sessions, ranked."""
    ranking = RankIndex(find_policy(policy))
    for view in views:
        ranking.put(view)
    ranking.guarded_first = guarded_first
    return ranking


def limits(
    *,
    tokens: int = 512,
    requests: int = 8,
    free_blocks: int = 1000,
    block_size: int = 32,
    whole_requests: bool = False,
    host_slots: int = 0,
    open_tokens: int | None = None,
    prefill_s: float | None = None,
) -> StepLimits:
    """What a step may use."""
    counts = (tokens, requests, free_blocks, block_size)
    return StepLimits(*counts, whole_requests, host_slots, open_tokens, prefill_s=prefill_s)


def a_ledger(*, leased: tuple[int, ...] = (), **blocks: tuple[int, ...]) -> BlockLedger:
    """Who holds which blocks; a block's holders are those that name it."""
    counts: dict[int, int] = {}
    for ids in (leased, *blocks.values()):
        for block_id in ids:
            counts[block_id] = counts.get(block_id, 0) + 1
    return BlockLedger(blocks, counts)
