"""Phase 1 of a step: decide, change nothing.

Walk the sessions that have work, in rank order. Give each what is left of the
step's tokens, as far as its KV blocks fit. Where they do not fit, evict. A
victim may be a session that has nothing new to compute, or one that the session
in question goes before; never one that was chosen already. Where all of them
together are not enough, compute the part that fits. Sessions that would only
restore lost KV come last, evict nobody, and use what is free.

So the first in rank can evict everybody else, and moves in every step, unless
hand-overs hold the memory, and those end. Nobody is evicted in vain, and of
nobody more than is needed (victims.py).

Equal leading documents are computed once: a session whose next block the prefix
cache knows, or another one computes in this step, is left out, and takes the
block from the cache before the next. As many are looked at as a step has slots.

The walk ends as soon as the tokens, the slots or the memory of the step are
spent. What it costs depends on the sessions it chooses, not on those that wait.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from prefill_worker.types import (
    Grant,
    Ledger,
    Ranking,
    RequestView,
    StepLimits,
    StepPlan,
    StopReason,
)
from prefill_worker.victims import Victims


def num_blocks_needed(view: RequestView, num_tokens: int, block_size: int) -> int:
    """Blocks to allocate so that the session can compute that many more tokens."""
    total = -(-(view.num_computed_tokens + num_tokens) // block_size)
    return max(total - view.num_blocks, 0)


def plan_step(ranking: Ranking, limits: StepLimits, ledger: Ledger) -> StepPlan:
    """The plan of one engine step."""
    return _Planning(ranking, limits, ledger).run()


class _Planning:
    """The scratch state of one call of `plan_step`."""

    def __init__(self, ranking: Ranking, limits: StepLimits, ledger: Ledger) -> None:
        self._ranking = ranking
        self._ledger = ledger
        self._block_size = limits.block_size
        self._tokens_left = limits.num_tokens
        self._slots_left = self._max_followers = limits.num_requests
        self._blocks_left = limits.num_free_blocks
        self._victims = Victims(ranking, ledger, whole_requests=limits.evicts_whole_requests)
        self._chosen: set[str] = set()
        self._grants: list[Grant] = []
        self._followers: list[str] = []
        # Keys of the full blocks that this step computes.
        self._computing: set[Hashable] = set()

    def run(self) -> StepPlan:
        evicted = self._victims.evicted
        for view in self._ranking.to_serve():
            if evicted and view.request_id in evicted:
                continue
            reason = self._consider(view)
            if reason is not None:
                return self._plan(reason, view.request_id)
        return self._plan(StopReason.ALL_SERVED, None)

    def _plan(self, stop: StopReason, stopped_at: str | None) -> StepPlan:
        grants, evictions = tuple(self._grants), self._victims.evictions()
        return StepPlan(grants, evictions, stop, stopped_at, tuple(self._followers))

    def _consider(self, view: RequestView) -> StopReason | None:
        """Serves one session, or says why the walk ends here."""
        if self._tokens_left <= 0:
            return StopReason.TOKEN_BUDGET
        if self._slots_left <= 0 or len(self._followers) >= self._max_followers:
            return StopReason.REQUEST_SLOTS
        if self._ledger.has_hit(view.request_id) or (self._computing and self._follows(view)):
            self._followers.append(view.request_id)
            return None
        num_tokens = min(view.num_wanted_tokens, self._tokens_left)
        num_blocks = num_blocks_needed(view, num_tokens, self._block_size)
        if num_blocks > self._blocks_left:
            num_tokens, num_blocks = self._make_room(view, num_tokens, num_blocks)
        if num_tokens:
            self._grant(view, num_tokens, num_blocks)
            return None
        # Sessions further down hold no block that could be had and was not
        # taken, so they cannot get one either.
        if not view.has_claim:
            return StopReason.NO_ROOM_TO_RESTORE
        return StopReason.KV_MEMORY if self._grants else StopReason.KV_LEASED

    def _follows(self, view: RequestView) -> bool:
        """Whether this step computes the session's next block for another one."""
        return not self._computing.isdisjoint(self._keys_of_step(view, self._block_size))

    def _keys_of_step(self, view: RequestView, num_tokens: int) -> Sequence[Hashable]:
        """Keys of the blocks that so many tokens more would make full."""
        first = view.num_computed_tokens // self._block_size
        stop = (view.num_computed_tokens + num_tokens) // self._block_size
        return self._ledger.block_keys(view.request_id, first, stop)

    def _make_room(self, view: RequestView, num_tokens: int, num_blocks: int) -> tuple[int, int]:
        """Evicts for so many blocks; how many of the tokens have room then, and in how many."""
        if view.has_claim:
            self._chosen.add(view.request_id)
            shortage = num_blocks - self._blocks_left
            self._blocks_left += self._victims.take(view, shortage, self._chosen)
        if num_blocks <= self._blocks_left:
            return num_tokens, num_blocks
        room = (view.num_blocks + self._blocks_left) * self._block_size
        num_tokens = max(min(num_tokens, room - view.num_computed_tokens), 0)
        return num_tokens, num_blocks_needed(view, num_tokens, self._block_size)

    def _grant(self, view: RequestView, num_tokens: int, num_blocks: int) -> None:
        self._blocks_left -= num_blocks
        self._tokens_left -= num_tokens
        self._slots_left -= 1
        self._chosen.add(view.request_id)
        self._grants.append(Grant(view.request_id, num_tokens))
        keys = self._keys_of_step(view, num_tokens)
        if keys:
            self._computing.update(keys)
