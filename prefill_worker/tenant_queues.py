"""The sessions with work by tenant: a layer over any policy.

Between tenants, those of the highest priority go first, then the one with the lowest
virtual time (tenant_ledger.py); inside a tenant, the policy's order holds. Tenants whose
sessions would all only restore KV they have lost go behind all others, as such sessions do
inside a policy. With one tenant the order is the policy's own.

A walk charges each tenant what it has yielded so far, so that a step with room for several
sessions alternates between tenants. It visits tenants one by one: its cost depends on the
sessions it yields, not on the tenants or sessions that wait.

Memory: a tenant that holds at most its weight's share of the KV blocks that all sessions
hold is not evicted for others of its priority or a lower one. Between the other sessions
the policy alone says which one may evict which: an order that does not change while they
wait, so that no two of them evict each other in turn, as they would if the order between
tenants decided.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush

from prefill_worker.policy import RankKey
from prefill_worker.rank_order import RankOrder
from prefill_worker.types import Grant
from stream2llm.api.tenant import TenantShare
from stream2llm.serving.sessions.tenant_ledger import TOKEN, TenantLedger, token_time

# Whether it has no claim, the negative priority, virtual time, name.
_Place = tuple[bool, int, int, str]
_ENDLESS = 1 << 128
# Steps for which a tenant without sessions is expected back.
RECENT_STEPS = 1000
# How many of those are remembered.
MAX_RECENT = 1024


def _has_claim(key: RankKey | None) -> bool:
    """Whether a session with that key has work that others may be evicted for."""
    return key is not None and not key[0]


class _Tenant:
    """One tenant that has sessions."""

    def __init__(self, share: TenantShare) -> None:
        self.order = RankOrder()
        # Its position among the tenants with work; None: it has none.
        self.place: _Place | None = None
        self.num_sessions = 0
        # Sessions with work that others may be evicted for.
        self.num_with_claim = 0
        self.num_blocks = 0
        self.set_share(share)

    def set_share(self, share: TenantShare) -> None:
        """Its weight and priority from now on."""
        self.share = share
        # Its weight as a whole number.
        self.num_weight_units = max(round(share.weight * TOKEN), 1)


class TenantQueues:
    """The serving order of all sessions with work."""

    def __init__(self) -> None:
        self._ledger = TenantLedger()
        self._tenants: dict[str, _Tenant] = {}
        self._tenant_of: dict[str, _Tenant] = {}
        # In order; tenants are few.
        self._with_work: list[_Place] = []
        # The position of each session with work inside its tenant.
        self.key_of: dict[str, RankKey] = {}
        self.num_with_claim = 0
        self._step = 0
        # The step at which each of those that left was last here, the first to leave first.
        self._left_at: dict[str, int] = {}
        # Over the tenants that hold blocks.
        self._num_blocks = 0
        self._num_weight_units = 0

    def __len__(self) -> int:
        return len(self.key_of)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.key_of

    @property
    def has_several(self) -> bool:
        """Whether several tenants have sessions."""
        return len(self._tenants) > 1

    @property
    def is_shared(self) -> bool:
        """Whether several tenants have sessions, or had some lately."""
        return len(self._tenants) + len(self._left_at) > 1

    def knows(self, request_id: str) -> bool:
        """Whether the session has entered."""
        return request_id in self._tenant_of

    def num_with_claim_of(self, name: str) -> int:
        """Sessions with work of that tenant that others may be evicted for."""
        return self._tenants[name].num_with_claim

    def tenant_of(self, request_id: str) -> str:
        """The name of the tenant of a known session."""
        return self._tenant_of[request_id].share.name

    # -- sessions ----------------------------------------------------------------------

    def enter(self, request_id: str, share: TenantShare) -> None:
        """A session begins; the newest weight and priority of its tenant count."""
        tenant = self._tenants.get(share.name)
        if tenant is None:
            tenant = self._tenants[share.name] = _Tenant(share)
            self._left_at.pop(share.name, None)
        elif tenant.share != share:
            num_blocks = tenant.num_blocks
            self._count_blocks(tenant, -num_blocks)
            tenant.set_share(share)
            self._count_blocks(tenant, num_blocks)
            self._move(tenant)
        tenant.num_sessions += 1
        self._tenant_of[request_id] = tenant

    def leave(self, request_id: str) -> None:
        """A session has ended, whose blocks were counted off before."""
        self.place(request_id, None)
        tenant = self._tenant_of.pop(request_id)
        tenant.num_sessions -= 1
        if not tenant.num_sessions:
            del self._tenants[tenant.share.name]
            self._ledger.depart(tenant.share.name)
            self._left_at[tenant.share.name] = self._step
            if len(self._left_at) > MAX_RECENT:
                del self._left_at[next(iter(self._left_at))]

    def place(self, request_id: str, key: RankKey | None) -> None:
        """Moves a session to the position of `key` inside its tenant; None: it has no work."""
        tenant = self._tenant_of[request_id]
        tenant.order.place(request_id, key)
        old = self.key_of.pop(request_id, None)
        if key is not None:
            self.key_of[request_id] = key
            if self._was_idle(tenant, key):
                self._ledger.resume(tenant.share)
        change = _has_claim(key) - _has_claim(old)
        tenant.num_with_claim += change
        self.num_with_claim += change
        if self._is_misplaced(tenant):
            self._move(tenant)

    @staticmethod
    def _was_idle(tenant: _Tenant, key: RankKey) -> bool:
        """Whether new work, of that key, ends a time without any but to restore lost KV."""
        return tenant.place is None or (tenant.place[0] and not key[0])

    @staticmethod
    def _is_misplaced(tenant: _Tenant) -> bool:
        """Whether a change in its order changes its position; most do not."""
        place = tenant.place
        return place is None or not tenant.order.key_of or place[0] != (not tenant.num_with_claim)

    def empty(self) -> None:
        """Removes all sessions from the order; who has had what stays."""
        for request_id in list(self.key_of):
            self.place(request_id, None)

    def _move(self, tenant: _Tenant) -> None:
        """Sets the tenant's position among the others."""
        place = None
        if tenant.order.key_of:
            share = tenant.share
            time = self._ledger.time_of(share.name)
            place = (not tenant.num_with_claim, -share.priority, time, share.name)
        if place == tenant.place:
            return
        if tenant.place is not None:
            del self._with_work[bisect_left(self._with_work, tenant.place)]
        if place is not None:
            insort(self._with_work, place)
        tenant.place = place

    # -- work --------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Sets the present of each priority: who comes from now on starts there."""
        self._step += 1
        while self._left_at:
            name = next(iter(self._left_at))
            if self._step - self._left_at[name] < RECENT_STEPS:
                break
            del self._left_at[name]
        index = 0
        while index < len(self._with_work):
            has_no_claim, level, time, _ = self._with_work[index]
            if has_no_claim:
                return
            self._ledger.advance(-level, time)
            index = bisect_right(self._with_work, (has_no_claim, level, _ENDLESS, ""))

    def charge(self, grants: Iterable[Grant]) -> None:
        """Charges the tenants what a step computes for their sessions."""
        num_tokens: dict[_Tenant, int] = defaultdict(int)
        for grant in grants:
            num_tokens[self._tenant_of[grant.request_id]] += grant.num_tokens
        for tenant, num in num_tokens.items():
            self._ledger.charge(tenant.share, num)
            self._move(tenant)

    def walk(self, left_out: set[str], cost_of: Callable[[str], int]) -> Iterator[str]:
        """Yields the sessions in serving order.

        `left_out` are names of tenants whose sessions are not wanted any more; it may grow
        meanwhile. `cost_of` says how many tokens a yielded session is going to take.
        """
        if len(self._with_work) == 1:
            return self._walk_one(self._with_work[0][-1], left_out)
        return self._walk_several(left_out, cost_of)

    def _walk_one(self, name: str, left_out: set[str]) -> Iterator[str]:
        for request_id in self._tenants[name].order:
            yield request_id
            if left_out:
                return

    def _walk_several(self, left_out: set[str], cost_of: Callable[[str], int]) -> Iterator[str]:
        # Tenants that have had a turn: their next turn, whose it is, and the session.
        begun: list[tuple[_Place, str, Iterator[str]]] = []
        fresh = iter(self._with_work)
        upcoming = next(fresh, None)
        while begun or upcoming is not None:
            if upcoming is not None and (not begun or upcoming < begun[0][0]):
                place, rest = upcoming, iter(self._tenants[upcoming[-1]].order)
                upcoming, request_id = next(fresh, None), next(rest)
            else:
                place, request_id, rest = heappop(begun)
            if place[-1] in left_out:
                continue
            yield request_id
            following = next(rest, None)
            if following is not None:
                turn = self._next_turn(place, cost_of(request_id), following)
                heappush(begun, (turn, following, rest))

    def _next_turn(self, place: _Place, num_tokens: int, following: str) -> _Place:
        _, level, time, name = place
        time += num_tokens * token_time(self._tenants[name].share)
        return bool(self.key_of[following][0]), level, time, name

    def first(self) -> str | None:
        """The session that the policy ranks first, whichever session it is served for."""
        heads = (next(iter(self._tenants[name].order)) for *_, name in self._with_work)
        return min(heads, key=lambda each: (self.key_of[each], each), default=None)

    # -- memory ------------------------------------------------------------------------

    def hold(self, request_id: str, change: int) -> None:
        """The session holds so many blocks more, or fewer."""
        self._count_blocks(self._tenant_of[request_id], change)

    def _count_blocks(self, tenant: _Tenant, change: int) -> None:
        held_before = tenant.num_blocks > 0
        tenant.num_blocks += change
        self._num_blocks += change
        units = tenant.num_weight_units
        self._num_weight_units += units * ((tenant.num_blocks > 0) - held_before)

    def is_protected(self, request_id: str, beneficiary: str) -> bool:
        """Whether the session must keep its blocks because its tenant holds no more than its share.

        Tenants of a higher priority go before that share, as before its work.
        """
        victim, other = self._tenant_of[request_id], self._tenant_of[beneficiary]
        if victim is other or other.share.priority > victim.share.priority:
            return False
        num_units = self._num_weight_units + (0 if other.num_blocks else other.num_weight_units)
        return victim.num_blocks * num_units <= victim.num_weight_units * self._num_blocks
