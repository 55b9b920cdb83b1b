"""Rankings: who is served first, and who is evicted last.

A policy is one function from a view to a sortable key, in one table. Ties are
broken by request id, in the planner.
"""

from __future__ import annotations

from collections.abc import Callable

from prefill_worker.types import RequestView

RankKey = tuple[int, ...]
Rank = Callable[[RequestView], RankKey]


def _tier(view: RequestView) -> int:
    """0 sealed, 1 open with work, 2 open and idle."""
    if view.sealed:
        return 0
    return 1 if view.num_wanted_tokens else 2


def fcfs(view: RequestView) -> RankKey:
    """Sealed before open, idle last; inside a tier by arrival."""
    return (_tier(view), view.arrival)


POLICIES: dict[str, Rank] = {"fcfs": fcfs}
