"""Blocks that a plan may take for some tenants only. Pure; a part of phase 1.

What was refused to a session is refused to later ones of its tenant, too, because they
rank behind it. So a tail is examined once per tenant, and where a whole tenant is out of
reach because it holds no more than its share, all its tails cost one look. Otherwise a plan
would cost the sessions it serves times those that hold blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from prefill_worker.types import Ranking, RequestView


class Tail:
    """A victim and what is left of its blocks."""

    def __init__(self, view: RequestView, block_ids: Sequence[int]) -> None:
        self.view = view
        self.block_ids = block_ids
        self.num_kept = len(block_ids)
        # Counts the tails of a plan in eviction order.
        self.position = 0
        # Names of tenants that may not have it.
        self.refused_to: frozenset[str] = frozenset()

    @property
    def num_dropped(self) -> int:
        """Blocks that it loses."""
        return len(self.block_ids) - self.num_kept


class RefusedTails:
    """Tails by their own tenant and those that they were refused to."""

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking
        # Each heap by position, so that it is in eviction order.
        self._heaps: dict[tuple[str, frozenset[str]], list[tuple[int, Tail]]] = {}

    def add(self, tail: Tail, beneficiary: RequestView) -> None:
        """The session may not have the tail, nor may later ones of its tenant."""
        tail.refused_to |= {self._ranking.tenant_of(beneficiary)}
        key = self._ranking.tenant_of(tail.view), tail.refused_to
        heappush(self._heaps.setdefault(key, []), (tail.position, tail))

    def take(self, beneficiary: RequestView) -> Iterator[Tail]:
        """Takes out those that the session may have as far as is known, in eviction order."""
        heaps = self._in_reach(beneficiary)
        while heaps:
            heap = min(heaps, key=lambda each: each[0][0])
            yield heappop(heap)[1]
            heaps = [each for each in heaps if each]

    def _in_reach(self, beneficiary: RequestView) -> list[list[tuple[int, Tail]]]:
        tenant = self._ranking.tenant_of(beneficiary)
        is_protected: dict[str, bool] = {}
        heaps = []
        for (owner, refused_to), heap in self._heaps.items():
            if not heap or tenant in refused_to:
                continue
            if owner not in is_protected:
                is_protected[owner] = self._ranking.is_protected(beneficiary, heap[0][1].view)
            if not is_protected[owner]:
                heaps.append(heap)
        return heaps
