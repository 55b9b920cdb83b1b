"""Whom to evict, and how much of each. Pure; a part of phase 1.

Victims lose blocks from their tail, and only as many as are needed: the head
stays valid, so less is computed again, and what is computed again attends to
the same context as before. Blocks that others hold too become free with their
last holder only; so victims are first counted as they come, then, from the last
one backwards, whatever made no difference is given back.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from prefill_worker.types import Eviction, EvictionReason, Ledger, Ranking, RequestView


class Victims:
    """Chooses whom to evict; walks the eviction order once a plan at most."""

    def __init__(self, ranking: Ranking, ledger: Ledger, *, whole_requests: bool) -> None:
        self._ranking = ranking
        self._ledger = ledger
        self._whole_requests = whole_requests
        self._rest: Iterator[RequestView] | None = None
        # Tried for an earlier session and still with blocks, first to evict first.
        self._tried: deque[RequestView] = deque()
        # How many holders each block loses by the evictions so far.
        self._released: Counter[int] = Counter()
        self._tails: dict[str, _Tail] = {}
        # Who loses blocks in this plan, in order, and for whom.
        self.evicted: dict[str, str] = {}

    def take(self, beneficiary: RequestView, num_blocks: int, chosen: set[str]) -> int:
        """Evicts for so many blocks; how many become free: fewer when there are no more."""
        used, num_freed = [], 0
        for view in self._candidates(beneficiary, chosen):
            tail = self._tail_of(view)
            used.append((tail, tail.num_kept))
            num_freed += self._drop(tail, num_blocks - num_freed)
            if num_freed >= num_blocks:
                break
        surplus = max(num_freed - num_blocks, 0)
        for tail, num_kept_before in reversed(used):
            given_back = self._give_back(tail, num_kept_before, surplus)
            surplus -= given_back
            num_freed -= given_back
        self._tried.extendleft(tail.view for tail, _ in reversed(used) if tail.num_kept)
        for tail, _ in used:
            if tail.num_dropped:
                self.evicted.setdefault(tail.view.request_id, beneficiary.request_id)
        return num_freed

    def evictions(self) -> tuple[Eviction, ...]:
        """All of this plan, in order; each with the blocks it makes free after those before it."""
        self._released.clear()
        return tuple(self._eviction(*each) for each in self.evicted.items())

    def _eviction(self, request_id: str, beneficiary: str) -> Eviction:
        tail = self._tails[request_id]
        view = tail.view
        return Eviction(
            request_id,
            num_blocks_kept=tail.num_kept,
            num_blocks_freed=sum(map(self._release, tail.block_ids[tail.num_kept :])),
            reason=EvictionReason.LOWER_RANK if view.has_claim else EvictionReason.IDLE,
            beneficiary=beneficiary,
        )

    def _candidates(self, beneficiary: RequestView, chosen: set[str]) -> Iterator[RequestView]:
        # Whoever may not be evicted now may not be later in this plan either:
        # those served later go behind `beneficiary`. So nobody is looked at twice.
        for view in self._in_order():
            if view.request_id in chosen:
                continue
            if not view.has_claim or self._ranking.goes_before(beneficiary, view):
                yield view

    def _in_order(self) -> Iterator[RequestView]:
        while self._tried:
            yield self._tried.popleft()
        if self._rest is None:
            self._rest = self._ranking.to_evict()
        # No `yield from`: it would close the order with each of these generators.
        while (view := next(self._rest, None)) is not None:
            yield view

    def _tail_of(self, view: RequestView) -> _Tail:
        tail = self._tails.get(view.request_id)
        if tail is None:
            block_ids = self._ledger.block_ids(view.request_id)
            tail = self._tails[view.request_id] = _Tail(view, block_ids)
        return tail

    def _drop(self, tail: _Tail, num_blocks: int) -> int:
        """Drops blocks until so many are free, or none is left; how many are."""
        num_freed = 0
        while tail.num_kept and (num_freed < num_blocks or self._whole_requests):
            tail.num_kept -= 1
            num_freed += self._release(tail.block_ids[tail.num_kept])
        return num_freed

    def _give_back(self, tail: _Tail, num_kept_before: int, surplus: int) -> int:
        """Gives the tail's front back as long as at most `surplus` blocks are free no more."""
        dropped = tail.block_ids[tail.num_kept : num_kept_before]
        num_given = 0
        for block_id in dropped:
            if self._is_free(block_id):
                if num_given == surplus:
                    break
                num_given += 1
            self._released[block_id] -= 1
            tail.num_kept += 1
        if self._whole_requests and tail.num_kept < num_kept_before:
            # All or nothing.
            return num_given - self._drop(tail, 0)
        return num_given

    def _release(self, block_id: int) -> bool:
        """One holder less; whether it was the last."""
        self._released[block_id] += 1
        return self._is_free(block_id)

    def _is_free(self, block_id: int) -> bool:
        return self._released[block_id] == self._ledger.num_holders(block_id)


class _Tail:
    """A victim and how much of it is left."""

    def __init__(self, view: RequestView, block_ids: Sequence[int]) -> None:
        self.view = view
        self.block_ids = block_ids
        self.num_kept = len(block_ids)

    @property
    def num_dropped(self) -> int:
        return len(self.block_ids) - self.num_kept
