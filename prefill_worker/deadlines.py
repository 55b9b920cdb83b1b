"""Sealed sessions with a deadline, by the latest moment at which their work has to begin.

The rank of a session between two events must not depend on the time, so time is not
part of any key. It changes one bit of a session, once: when the moment passes, the
deadline is lost, and the session is ranked anew as a late one. Each step asks only for
what has passed since the last: O(log n) for a session in its life, nothing for those
that wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prefill_worker.rank_order import RankOrder
from prefill_worker.types import RequestView


def start_by_ms(view: RequestView) -> int | None:
    """The latest moment to begin; None for a session that has no deadline, or has lost it."""
    is_pending = view.sealed and view.deadline_ms and not view.is_late
    return view.deadline_ms - view.remaining_ms if is_pending else None


class Deadlines:
    """The deadlines that can still be met."""

    def __init__(self, compute_s: Callable[[int, int], float] | None = None) -> None:
        """`compute_s`: seconds to compute tokens [from, to); without it work counts as nothing."""
        self._compute_s = compute_s
        self._moments = RankOrder()
        # The time of the last step, by which sessions are judged.
        self._now_ms = 0

    def __len__(self) -> int:
        return len(self._moments)

    def put(self, request_id: str, moment_ms: int | None) -> None:
        """Sets the latest moment to begin; None forgets the session."""
        self._moments.place(request_id, None if moment_ms is None else (moment_ms,))

    def judged(self, view: RequestView) -> RequestView:
        """Returns the session with what is left of its work, and whether that is too much by now."""
        start, stop = view.num_computed_tokens, view.num_target_tokens
        remaining_ms = 0
        if self._compute_s is not None and stop > start:
            remaining_ms = int(1000 * self._compute_s(start, stop))
        moment_ms = view.deadline_ms - remaining_ms
        is_late = bool(view.sealed and view.deadline_ms and moment_ms < self._now_ms)
        view = view._replace(remaining_ms=remaining_ms, is_late=is_late)
        self.put(view.request_id, start_by_ms(view))
        return view

    def take_lost(self, now_ms: int) -> Iterator[str]:
        """Forgets and yields the sessions whose moment has passed."""
        self._now_ms = now_ms
        while len(self._moments) and self._moments.first_key < (now_ms,):
            request_id = next(iter(self._moments))
            self.put(request_id, None)
            yield request_id
