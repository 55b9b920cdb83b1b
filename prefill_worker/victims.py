"""Decides whom to evict, and how much of each. Pure; a part of phase 1.

Victims lose blocks from their tail, and only as many as are needed: the head stays
valid, so less is computed again, and that attends to the same context as before.
Blocks that only the victim holds go first. A shared block becomes free with its last
holder only; if shared blocks are needed, victims are added in order, and then, from
the last one backwards, blocks whose eviction made no difference are given back.

Among sessions that the ranking does not order, because none is known to be served
before another (open ones without new tokens), the one whose blocks are cheapest to
lose goes first, in seconds per block that becomes free. A few of them are compared at
a time, so that the cost of a plan does not depend on their number.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from math import inf

from cost_profiles.decision import Reason
from prefill_worker.preemption import Preemption
from prefill_worker.refused_tails import RefusedTails, Tail
from prefill_worker.types import Eviction, EvictionReason, Ledger, Ranking, RequestView, StepLimits

# Number of equally ranked sessions that are compared at a time.
WINDOW = 8


class Victims:
    """Chooses victims; walks the eviction order at most once per plan."""

    def __init__(
        self, ranking: Ranking, ledger: Ledger, limits: StepLimits, preemption: Preemption
    ) -> None:
        self._ranking = ranking
        self._ledger = ledger
        self._whole_requests = limits.evicts_whole_requests
        self._slots_left = limits.num_host_slots
        self._preemption = preemption
        self._rest: Iterator[RequestView] | None = None
        # Read from the eviction order, but not examined yet, in order.
        self._window: deque[Tail] = deque()
        self._next_view: RequestView | None = None
        # Examined for an earlier session, in eviction order: with own blocks left, and
        # with a shared last block.
        self._with_own: deque[Tail] = deque()
        self._with_shared: list[Tail] = []
        # Examined for sessions of other tenants, which may not evict them.
        self._refused = RefusedTails(ranking)
        # Number of holders that each block has lost by the evictions so far.
        self._released: Counter[int] = Counter()
        self._tails: dict[str, Tail] = {}
        # Victims of this plan in order, each with its beneficiary.
        self.evicted: dict[str, str] = {}

    def take(self, beneficiary: RequestView, num_blocks: int, chosen: set[str]) -> int:
        """Evicts until `num_blocks` blocks become free; returns how many do, at most all there are.

        Blocks that only the victim holds go first. A shared block becomes free with its
        last holder only, so if nothing else helps, all its holders lose it.
        """
        used: list[tuple[Tail, int]] = []

        def may_lose(tail: Tail) -> bool:
            is_chosen = tail.view.request_id in chosen
            return not is_chosen and self._ranking.may_evict(beneficiary, tail.view)

        def may_lose_own(tail: Tail) -> bool:
            may = may_lose(tail)
            # A tenant's session that may not be evicted now may not be evicted later in this
            # plan either: later ones rank behind. So none is examined twice.
            if not may and self._ranking.has_tenants:
                self._refused.add(tail, beneficiary)
            return may

        own = filter(may_lose_own, self._in_order(beneficiary, num_blocks))
        num_freed = self._drop_own(own, num_blocks, used)
        if num_freed < num_blocks:
            shared = filter(may_lose, list(self._with_shared))
            num_freed += self._drop_shared(shared, num_blocks - num_freed, used)
        for tail, _ in used:
            if tail.num_dropped:
                self.evicted.setdefault(tail.view.request_id, beneficiary.request_id)
        return num_freed

    def _drop_own(
        self, tails: Iterator[Tail], num_blocks: int, used: list[tuple[Tail, int]]
    ) -> int:
        """Drops unshared blocks; returns how many."""
        num_freed = 0
        for tail in tails:
            used.append((tail, tail.num_kept))
            num_freed += self._drop(tail, num_blocks - num_freed, only_own=True)
            if num_freed >= num_blocks:
                if tail.num_kept:
                    self._with_own.appendleft(tail)
                break
            if tail.num_kept:
                self._with_shared.append(tail)
        return num_freed

    def _drop_shared(
        self, tails: Iterator[Tail], num_blocks: int, used: list[tuple[Tail, int]]
    ) -> int:
        """Drops any blocks until enough are free, then gives back what was not needed."""
        num_freed = 0
        for tail in tails:
            used.append((tail, tail.num_kept))
            num_freed += self._drop(tail, num_blocks - num_freed)
            if num_freed >= num_blocks:
                break
        surplus = max(num_freed - num_blocks, 0)
        for tail, num_kept_before in reversed(used):
            given_back = self._give_back(tail, num_kept_before, surplus)
            surplus -= given_back
            num_freed -= given_back
        return num_freed

    def evictions(self) -> tuple[Eviction, ...]:
        """Returns the evictions in order, each with the blocks it frees beyond earlier ones."""
        num_found = {each: self._num_found(self._tails[each]) for each in self.evicted}
        self._released.clear()
        return tuple(self._eviction(*each, num_found[each[0]]) for each in self.evicted.items())

    def _num_found(self, tail: Tail) -> int:
        """Returns how many dropped blocks, from the first, others hold after all evictions."""
        num_found = 0
        for block_id in tail.block_ids[tail.num_kept :]:
            if self._is_free(block_id):
                break
            num_found += 1
        return num_found

    def _eviction(self, request_id: str, beneficiary: str, num_found: int) -> Eviction:
        tail = self._tails[request_id]
        swap = self._preemption.choose(tail.view, tail.num_kept, num_found, self._slots_left)
        self._slots_left -= swap.num_blocks
        if swap.reason is Reason.TRIAL:
            self._preemption = replace(self._preemption, tries_swap=False)
        return Eviction(
            request_id,
            num_blocks_kept=tail.num_kept,
            num_blocks_freed=sum(map(self._release, tail.block_ids[tail.num_kept :])),
            reason=EvictionReason.LOWER_RANK if tail.view.has_claim else EvictionReason.IDLE,
            beneficiary=beneficiary,
            swap=swap,
        )

    def _in_order(self, beneficiary: RequestView, num_blocks: int) -> Iterator[Tail]:
        yield from self._refused.take(beneficiary)
        while self._with_own:
            yield self._with_own.popleft()
        while self._window or self._fill_window(num_blocks):
            yield self._window.popleft()

    def _fill_window(self, num_blocks: int) -> bool:
        """Reads on in the eviction order, as far as the order does not matter."""
        first = self._read()
        if first is None:
            return False
        views = [first]
        while len(views) < WINDOW:
            following = self._read()
            if following is None:
                break
            if not self._ranking.may_swap_order(first, following):
                self._next_view = following
                break
            views.append(following)
        tails = [Tail(view, self._ledger.block_ids(view.request_id)) for view in views]
        if len(tails) > 1:
            # Sorting is stable: equally cheap sessions stay in the ranking's order.
            tails.sort(key=lambda tail: self._seconds_per_block(tail, num_blocks))
        for position, tail in enumerate(tails, len(self._tails)):
            tail.position = position
            self._tails[tail.view.request_id] = tail
        self._window.extend(tails)
        return True

    def _read(self) -> RequestView | None:
        view, self._next_view = self._next_view, None
        if view is not None:
            return view
        if self._rest is None:
            self._rest = self._ranking.to_evict()
        view = next(self._rest, None)
        # Blocks that are being written cannot be evicted.
        while view is not None and view.is_loading:
            view = next(self._rest, None)
        return view

    def _seconds_per_block(self, tail: Tail, num_blocks: int) -> float:
        """Returns the cost per block of losing up to `num_blocks` of its own last blocks."""
        num_own = 0
        for block_id in reversed(tail.block_ids):
            if num_own == num_blocks or self._ledger.num_holders(block_id) > 1:
                break
            num_own += 1
        if not num_own:
            return inf
        return self._preemption.seconds(tail.view, num_own) / num_own

    def _drop(self, tail: Tail, num_blocks: int, *, only_own: bool = False) -> int:
        """Drops last blocks until `num_blocks` are free, or none is left; returns how many are."""
        num_freed, num_kept_before = 0, tail.num_kept
        while tail.num_kept and (num_freed < num_blocks or self._whole_requests):
            is_free = self._release(tail.block_ids[tail.num_kept - 1])
            if only_own and not is_free and not self._whole_requests:
                self._released[tail.block_ids[tail.num_kept - 1]] -= 1
                break
            tail.num_kept -= 1
            num_freed += is_free
        if only_own and not num_freed:
            self._give_back(tail, num_kept_before, 0)
        return num_freed

    def _give_back(self, tail: Tail, num_kept_before: int, surplus: int) -> int:
        """Gives the tail's front back while this takes at most `surplus` free blocks."""
        num_given = 0
        for block_id in tail.block_ids[tail.num_kept : num_kept_before]:
            if self._is_free(block_id):
                if num_given == surplus:
                    break
                num_given += 1
            self._released[block_id] -= 1
            tail.num_kept += 1
        if self._whole_requests and tail.num_kept < num_kept_before:
            # Such a victim loses all of its blocks or none.
            return num_given - self._drop(tail, 0)
        return num_given

    def _release(self, block_id: int) -> bool:
        """Removes one holder; returns whether it was the last."""
        self._released[block_id] += 1
        return self._is_free(block_id)

    def _is_free(self, block_id: int) -> bool:
        return self._released[block_id] == self._ledger.num_holders(block_id)
