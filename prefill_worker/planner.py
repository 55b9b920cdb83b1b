"""Phase 1 of a step: decide, change nothing.

Walk the ranking. Give each session what is left of the step's tokens, as far
as its KV blocks fit. Where they do not fit, evict from the bottom of the
ranking upward, never a session that was already chosen and never one that
ranks above the one it is for; where that is not enough either, compute the
part that fits. The top-ranked session can evict all others, so it always
moves, unless leases hold the memory, and those end.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefill_worker.policy import Rank
from prefill_worker.types import (
    BlockLedger,
    Deferral,
    DeferralReason,
    Eviction,
    EvictionReason,
    Grant,
    RequestView,
    StepLimits,
    StepPlan,
)


def ranked(views: Sequence[RequestView], rank: Rank) -> list[RequestView]:
    """The sessions, first served first; equal ranks by request id."""
    return sorted(views, key=lambda view: (rank(view), view.request_id))


def num_blocks_needed(view: RequestView, num_tokens: int, block_size: int) -> int:
    """Blocks to allocate so that the session can compute that many more tokens."""
    total = -(-(view.num_computed_tokens + num_tokens) // block_size)
    return max(total - view.num_blocks, 0)


def plan_step(
    views: Sequence[RequestView],
    rank: Rank,
    limits: StepLimits,
    ledger: BlockLedger | None = None,
) -> StepPlan:
    """The plan of one engine step.

    Without a ledger nothing is evicted: sessions that do not fit are deferred
    with NO_BLOCKS, which tells the caller to plan again with one.
    """
    return _Planning(ranked(views, rank), limits, ledger).run()


class _Planning:
    """The scratch state of one call of `plan_step`."""

    def __init__(
        self, order: list[RequestView], limits: StepLimits, ledger: BlockLedger | None
    ) -> None:
        self._order = order
        self._block_size = limits.block_size
        self._tokens_left = limits.num_tokens
        self._requests_left = limits.num_requests
        self._blocks_left = limits.num_free_blocks
        self._victims = list(order) if ledger else []
        self._block_ids = ledger.block_ids_by_request if ledger else {}
        self._ref_counts = dict(ledger.ref_counts) if ledger else {}
        self._evicted: set[str] = set()
        self._grants: list[Grant] = []
        self._evictions: list[Eviction] = []
        self._deferrals: list[Deferral] = []

    def run(self) -> StepPlan:
        for position, view in enumerate(self._order):
            if view.num_wanted_tokens and view.request_id not in self._evicted:
                self._consider(view, position)
        return StepPlan(tuple(self._grants), tuple(self._evictions), tuple(self._deferrals))

    def _consider(self, view: RequestView, position: int) -> None:
        reason = self._exhausted()
        if reason is None:
            num_tokens = self._fit(view, position, min(view.num_wanted_tokens, self._tokens_left))
            if num_tokens:
                self._grant(view, num_tokens)
                return
            reason = DeferralReason.NO_BLOCKS
        self._deferrals.append(Deferral(view.request_id, reason))

    def _exhausted(self) -> DeferralReason | None:
        if self._tokens_left <= 0:
            return DeferralReason.TOKEN_BUDGET
        if self._requests_left <= 0:
            return DeferralReason.REQUEST_SLOTS
        return None

    def _fit(self, view: RequestView, position: int, num_tokens: int) -> int:
        """How many of `num_tokens` have room, after evicting for them."""
        needed = num_blocks_needed(view, num_tokens, self._block_size)
        while needed > self._blocks_left and self._evict_one(position):
            pass
        if needed <= self._blocks_left:
            return num_tokens
        room = (view.num_blocks + self._blocks_left) * self._block_size
        return max(min(num_tokens, room - view.num_computed_tokens), 0)

    def _evict_one(self, position: int) -> bool:
        """Evicts the lowest-ranked holder behind `position`; False if there is none."""
        while len(self._victims) > position + 1:
            victim = self._victims.pop()
            if self._block_ids.get(victim.request_id):
                self._evict(victim)
                return True
        return False

    def _evict(self, victim: RequestView) -> None:
        freed = 0
        for block_id in self._block_ids[victim.request_id]:
            self._ref_counts[block_id] -= 1
            freed += self._ref_counts[block_id] == 0
        self._blocks_left += freed
        self._evicted.add(victim.request_id)
        self._evictions.append(Eviction(victim.request_id, freed, EvictionReason.FOR_HIGHER_RANK))

    def _grant(self, view: RequestView, num_tokens: int) -> None:
        self._blocks_left -= num_blocks_needed(view, num_tokens, self._block_size)
        self._tokens_left -= num_tokens
        self._requests_left -= 1
        self._grants.append(Grant(view.request_id, num_tokens))
