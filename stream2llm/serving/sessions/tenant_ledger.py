"""How much work each tenant has had, as virtual time. Pure; no clock.

A tenant's virtual time grows by `TOKEN / weight` with each prompt token that is computed
for it. Tokens that an update throws away stay charged, and computing the new ones is
charged too, so who replaces its list again and again pays for it. Prefix cache hits cost
nothing. Among tenants of one priority, the one with the lowest virtual time is served
first (start-time fair queueing; the virtual token counter of fair LLM serving).

A tenant that has had no work waiting, or is new, starts at the present: the lowest virtual
time among those that had work when the last step was planned. So idleness earns no credit,
and a tenant that comes while a step runs is served before those the step computes for. One
that left ahead of the others keeps its time, so that leaving and coming back pays no debt;
only the newest of those that left are remembered.
"""

from __future__ import annotations

from stream2llm.api.tenant import TenantShare

# Virtual time of one token at weight 1. Whole numbers, so that sums are exact.
TOKEN = 1 << 20
# Tenants without a session that are remembered.
MAX_DEPARTED = 1024


def token_time(share: TenantShare) -> int:
    """Virtual time of one token of that tenant."""
    return max(round(TOKEN / share.weight), 1)


class TenantLedger:
    """Virtual times by tenant; bounded by the tenants with sessions and MAX_DEPARTED."""

    def __init__(self, max_departed: int = MAX_DEPARTED) -> None:
        self._max_departed = max_departed
        self._times: dict[str, int] = {}
        # Remembered tenants without a session; the one that left first comes first.
        self._departed: dict[str, None] = {}
        # The present of each priority.
        self._now: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._times)

    def time_of(self, name: str) -> int:
        """The virtual time of a tenant that has sessions."""
        return self._times[name]

    def resume(self, share: TenantShare) -> int:
        """The tenant has work, and had none before; returns its virtual time from now on."""
        now = self._now.get(share.priority, 0)
        self._departed.pop(share.name, None)
        time = self._times[share.name] = max(self._times.get(share.name, now), now)
        return time

    def charge(self, share: TenantShare, num_tokens: int) -> int:
        """So many tokens are computed for it; returns its virtual time."""
        self._times[share.name] += num_tokens * token_time(share)
        return self._times[share.name]

    def advance(self, priority: int, time: int) -> None:
        """The present of a priority is `time` or later."""
        self._now[priority] = max(self._now.get(priority, 0), time)

    def depart(self, name: str) -> None:
        """The tenant's last session has ended."""
        if name in self._times:
            self._departed[name] = None
        while len(self._departed) > self._max_departed:
            forgotten = next(iter(self._departed))
            del self._departed[forgotten], self._times[forgotten]
