"""Whom to evict, and how much of each. Pure; a part of phase 1.

Victims lose blocks from their tail, and only as many as are needed: the head
stays valid, so less is computed again, and what is computed again attends to
the same context as before. First go blocks that a victim holds alone. Blocks that
several hold become free with the last holder only; if it takes them, victims are
counted as they come, and then, from the last one backwards, whatever made no
difference is given back.
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
        # Looked at for an earlier session, first to evict first: with blocks of
        # their own left, and with a last block that others hold too.
        self._with_own: deque[_Tail] = deque()
        self._with_shared: list[_Tail] = []
        # How many holders each block loses by the evictions so far.
        self._released: Counter[int] = Counter()
        self._tails: dict[str, _Tail] = {}
        # Who loses blocks in this plan, in order, and for whom.
        self.evicted: dict[str, str] = {}

    def take(self, beneficiary: RequestView, num_blocks: int, chosen: set[str]) -> int:
        """Evicts for so many blocks; how many become free: fewer when there are no more.

        First blocks that a victim holds alone. Shared ones become free with their
        last holder only, so all holders lose them, if nothing else helps.
        """
        used: list[tuple[_Tail, int]] = []

        def may_lose(tail: _Tail) -> bool:
            view = tail.view
            if view.request_id in chosen:
                return False
            return not view.has_claim or self._ranking.goes_before(beneficiary, view)

        num_freed = self._drop_own(filter(may_lose, self._in_order()), num_blocks, used)
        if num_freed < num_blocks:
            shared = filter(may_lose, list(self._with_shared))
            num_freed += self._drop_shared(shared, num_blocks - num_freed, used)
        for tail, _ in used:
            if tail.num_dropped:
                self.evicted.setdefault(tail.view.request_id, beneficiary.request_id)
        return num_freed

    def _drop_own(
        self, tails: Iterator[_Tail], num_blocks: int, used: list[tuple[_Tail, int]]
    ) -> int:
        """Drops blocks that are free by it; how many are."""
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
        self, tails: Iterator[_Tail], num_blocks: int, used: list[tuple[_Tail, int]]
    ) -> int:
        """Drops whatever there is until enough is free, then gives back what was not needed."""
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
        """All of this plan, in order; each with the blocks it makes free after those before it."""
        self._released.clear()
        return tuple(self._eviction(*each) for each in self.evicted.items())

    def _eviction(self, request_id: str, beneficiary: str) -> Eviction:
        tail = self._tails[request_id]
        return Eviction(
            request_id,
            num_blocks_kept=tail.num_kept,
            num_blocks_freed=sum(map(self._release, tail.block_ids[tail.num_kept :])),
            reason=EvictionReason.LOWER_RANK if tail.view.has_claim else EvictionReason.IDLE,
            beneficiary=beneficiary,
        )

    def _in_order(self) -> Iterator[_Tail]:
        # Whoever may not be evicted now may not be later in this plan either:
        # those served later go behind. So nobody is looked at twice.
        while self._with_own:
            yield self._with_own.popleft()
        if self._rest is None:
            self._rest = self._ranking.to_evict()
        # No `for`: it would close the order with each of these generators.
        while (view := next(self._rest, None)) is not None:
            tail = _Tail(view, self._ledger.block_ids(view.request_id))
            self._tails[view.request_id] = tail
            yield tail

    def _drop(self, tail: _Tail, num_blocks: int, *, only_own: bool = False) -> int:
        """Drops blocks from the end until so many are free, or none is left; how many are."""
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

    def _give_back(self, tail: _Tail, num_kept_before: int, surplus: int) -> int:
        """Gives the tail's front back as long as at most `surplus` blocks are free no more."""
        num_given = 0
        for block_id in tail.block_ids[tail.num_kept : num_kept_before]:
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
