"""What this router's sessions have left to compute at a prefill worker, and how fast that goes.

Learned from progress reports, which count tokens: the rate is what was computed in the
seconds in which something was left to compute. Both fade with time, so that the rate is
that of the last half minute, and unknown some time after the last work. Where several
routers use a worker, each sees its part of the work and its part of the rate, so that the
wait is the same. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp

from stream2llm.api.tenant import ONE_TENANT, TenantShare

# Older observations count less: this long ago, 37 % as much.
_MEMORY_S = 30.0
# Fewer tokens are no rate.
_LEAST_TOKENS = 1024


@dataclass(slots=True)
class _Work:
    """One session's."""

    tenant: TenantShare = ONE_TENANT
    num_left: int = 0
    num_computed: int = 0
    # When its first token is due; None: no deadline, or still open.
    due_s: float | None = None


class WorkQueue:
    """The work of one worker. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._works: dict[int, _Work] = {}
        self._num_left = 0
        self._at_s = 0.0
        # Sums over the recent past, in which older ones fade.
        self._busy_s = 0.0
        self._num_computed = 0.0

    def tokens_per_s(self, now_s: float) -> float | None:
        """The learned rate; None while too little was computed lately."""
        self._pass(now_s)
        if self._num_computed < _LEAST_TOKENS or self._busy_s <= 0:
            return None
        return self._num_computed / self._busy_s

    def note(
        self,
        session: int,
        num_left: int,
        num_computed: int,
        now_s: float,
        due_s: float | None = None,
        *,
        tenant: TenantShare,
    ) -> None:
        """A session has so many tokens left, and so many computed so far, again ones included."""
        self._pass(now_s)
        before = self._works.get(session, _Work())
        self._num_computed += max(num_computed - before.num_computed, 0)
        self._num_left += num_left - before.num_left
        self._works[session] = _Work(tenant, num_left, num_computed, due_s)

    def leave(self, session: int, now_s: float) -> None:
        """A session has its first token, or has ended; nothing for one that is not known."""
        work = self._works.pop(session, None)
        if work is not None:
            self._pass(now_s)
            # What it had left last was computed since, unless it was given up.
            self._num_left -= work.num_left

    def num_before(self, tenant: TenantShare, num_own: int, now_s: float) -> int:
        """Tokens that go before a new session of the tenant, which brings `num_own`.

        From its tenant: those of all sessions but the ones whose deadline has passed. From a
        tenant of a higher priority: all; of an equal one: at most what its weight allows
        until those and the session's own are computed; of a lower one: none.
        """
        num_mine, others = 0, dict[TenantShare, int]()
        for work in self._works.values():
            if work.tenant.name != tenant.name:
                others[work.tenant] = others.get(work.tenant, 0) + work.num_left
            elif work.due_s is None or work.due_s >= now_s:
                num_mine += work.num_left
        a_weight = (num_mine + num_own) / tenant.weight
        return num_mine + sum(
            num_left
            if each.priority > tenant.priority
            else min(num_left, ceil(a_weight * each.weight))
            for each, num_left in others.items()
            if each.priority >= tenant.priority
        )

    def _pass(self, now_s: float) -> None:
        """Counts the time since the last event as busy, if something was left to compute.

        These seconds fade like older ones: a long wait for memory is no more than a window.
        """
        passed_s, self._at_s = max(now_s - self._at_s, 0.0), max(now_s, self._at_s)
        kept = exp(-passed_s / _MEMORY_S)
        self._busy_s *= kept
        self._num_computed *= kept
        if self._num_left > 0:
            self._busy_s += _MEMORY_S * (1 - kept)
