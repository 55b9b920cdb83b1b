"""The sessions in rank order, kept up to date by events.

Sorting all sessions in every step would make each step more expensive with every
session that merely waits. Here a session is repositioned only when its view is
replaced: O(log n) per touched session, nothing for the others.

Two orders are kept: the serving order of sessions that have work, by tenant
(tenant_queues.py), and the eviction order of those that hold blocks. Mostly nothing is
evicted, so the second one is brought up to date when it is read: a first eviction after
a long time pays once for each session that was touched meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from prefill_worker.policy import Policy, RankKey
from prefill_worker.rank_order import RankOrder
from prefill_worker.tenant_queues import TenantQueues
from prefill_worker.types import Grant, RequestView, Walk
from stream2llm.api.tenant import ONE_TENANT, TenantShare

# Tenants that one plan may leave out. Each may cost a look at every holder of blocks.
MAX_LEFT_OUT = 4


class RankIndex:
    """A `Ranking` that changes with the sessions. A change invalidates its iterators."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._views: dict[str, RequestView] = {}
        self._serving = TenantQueues()
        self._holding = RankOrder()
        # Sessions whose position in that order is out of date.
        self._moved: set[str] = set()
        # The guarded sessions among the serving ones.
        self._guarded = RankOrder()
        # Those among them that decode, by arrival.
        self._decoding = RankOrder()
        # Whether guarded sessions go first in this step.
        self.guarded_first = False
        # Tokens that all sessions together may have computed now.
        self.num_waiting_tokens = 0

    @property
    def policy(self) -> Policy:
        """The policy that ranks the sessions."""
        return self._policy

    @property
    def num_with_work(self) -> int:
        """Number of sessions that have tokens to compute."""
        return len(self._serving)

    @property
    def num_guarded(self) -> int:
        """Number of guarded sessions among those with work."""
        return len(self._guarded)

    @property
    def num_with_claim(self) -> int:
        """Number of sessions with work that others may be evicted for."""
        return self._serving.num_with_claim

    def num_with_claim_of(self, tenant: str) -> int:
        """The same of one tenant."""
        return self._serving.num_with_claim_of(tenant)

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, request_id: str) -> RequestView:
        return self._views[request_id]

    def has_work(self, request_id: str) -> bool:
        """Whether that session has tokens to compute."""
        return request_id in self._serving

    @property
    def has_tenants(self) -> bool:
        """Whether sessions of several tenants are here."""
        return self._serving.has_several

    @property
    def is_shared(self) -> bool:
        """Whether sessions of several tenants are here, or were lately."""
        return self._serving.is_shared

    def enter(self, request_id: str, tenant: TenantShare) -> None:
        """Says whose session that is, before its first `put`; otherwise it is of no tenant."""
        self._serving.enter(request_id, tenant)

    def put(self, view: RequestView) -> bool:
        """Adds or repositions a session; returns whether it has a claim."""
        request_id, has_claim = view.request_id, view.has_claim
        self._count_blocks(view)
        self._count_waiting(view)
        self._views[request_id] = view
        self._moved.add(request_id)
        key = self._policy.serving_key(view, has_claim) if view.num_wanted_tokens else None
        # Many touches do not change a session's position.
        if key != self._serving.key_of.get(request_id):
            self._serving.place(request_id, key)
        if view.guard_number or request_id in self._guarded:
            guard_number = (view.guard_number,) if view.guard_number and key is not None else None
            self._guarded.place(request_id, guard_number)
        if view.is_answering:
            self._decoding.place(request_id, (view.arrival,) if view.is_decoding else None)
        return has_claim

    def _count_blocks(self, view: RequestView) -> None:
        """Charges the tenant the blocks that the session has gained or lost."""
        before = self._views.get(view.request_id)
        if before is None and not self._serving.knows(view.request_id):
            self._serving.enter(view.request_id, ONE_TENANT)
        change = view.num_blocks - (before.num_blocks if before is not None else 0)
        if change:
            self._serving.hold(view.request_id, change)

    def _count_waiting(self, view: RequestView) -> None:
        before = self._views.get(view.request_id)
        num_before = before.num_wanted_tokens if before is not None else 0
        self.num_waiting_tokens += view.num_wanted_tokens - num_before

    def drop(self, request_id: str) -> None:
        """Removes a session that has ended, maybe before its first `put`."""
        view = self._views.pop(request_id, None)
        if view is not None:
            self._serving.hold(request_id, -view.num_blocks)
            self.num_waiting_tokens -= view.num_wanted_tokens
        self._serving.leave(request_id)
        self._moved.discard(request_id)
        self._holding.place(request_id, None)
        self._guarded.place(request_id, None)
        self._decoding.place(request_id, None)

    def set_policy(self, policy: Policy) -> None:
        """Ranks all sessions anew."""
        self._policy = policy
        self._serving.empty()
        self._holding, self._guarded = RankOrder(), RankOrder()
        for view in self._views.values():
            self.put(view)

    def begin_step(self) -> None:
        """A step is planned next: tenants that get work from now on start at the present."""
        self._serving.begin_step()

    def charge(self, grants: Iterable[Grant]) -> None:
        """Charges the tenants what a step computes for their sessions."""
        self._serving.charge(grants)

    def to_serve(self) -> Walk:
        """Yields sessions that have work in serving order."""
        return ServingWalk(self._views, self._serving, self._decoding, self._guarded_now())

    def _guarded_now(self) -> RankOrder | None:
        return self._guarded if self.guarded_first and self.num_guarded else None

    def first_of_all(self) -> RequestView | None:
        """The session with work that the policy ranks first, whichever session it is served for."""
        request_id = self._serving.first()
        return None if request_id is None else self._views[request_id]

    def to_evict(self) -> Iterator[RequestView]:
        """Yields sessions that hold blocks in eviction order."""
        for request_id in self._moved:
            view = self._views[request_id]
            key = self._policy.eviction_key(view) if view.num_blocks else None
            if key != self._holding.key_of.get(request_id):
                self._holding.place(request_id, key)
        self._moved.clear()
        return map(self._views.__getitem__, reversed(self._holding))

    def goes_before(self, first: RequestView, second: RequestView) -> bool:
        """Whether `first` is served before `second`, and may evict it.

        Sessions that decode may evict all others, and are evicted only for one that came
        earlier. A guarded session is evicted for those alone, in whichever step: answers end.
        """
        if second.is_decoding:
            return first.is_decoding and first.arrival < second.arrival
        if first.is_decoding:
            return True
        if second.guard_number:
            return self.guarded_first and 0 < first.guard_number < second.guard_number
        if first.guard_number and self.guarded_first:
            return True
        return self._serve_key(first) < self._serve_key(second)

    def may_evict(self, beneficiary: RequestView, victim: RequestView) -> bool:
        """Whether the one may take blocks of the other, as far as rank and tenants say."""
        if self.is_protected(beneficiary, victim):
            return False
        return not victim.has_claim or self.goes_before(beneficiary, victim)

    def tenant_of(self, view: RequestView) -> str:
        """The name of the session's tenant."""
        return self.tenant_name(view.request_id)

    def tenant_name(self, request_id: str) -> str:
        """The same, by id."""
        return self._serving.tenant_of(request_id)

    def is_protected(self, beneficiary: RequestView, victim: RequestView) -> bool:
        """Returns whether `beneficiary` may take no blocks of sessions of `victim`'s tenant.

        Nothing is protected from an answer that needs its next block: two tenants' answers
        that hold all the memory would wait for each other.
        """
        if not self.has_tenants or beneficiary.is_decoding:
            return False
        if self.guarded_first and beneficiary.guard_number:
            return False
        return self._serving.is_protected(victim.request_id, beneficiary.request_id)

    @property
    def keeps_sealed_apart(self) -> bool:
        """Whether open sessions are kept out of a step that computes for sealed ones."""
        return self._policy.keeps_sealed_apart

    def may_swap_order(self, first: RequestView, second: RequestView) -> bool:
        """Whether the policy does not care in which order these two are evicted."""
        return self._policy.may_swap_order(first, second)

    def _serve_key(self, view: RequestView) -> RankKey:
        return self._policy.serving_key(view, view.has_claim)


class ServingWalk:
    """One walk down the serving order.

    Sessions that decode come first, then guarded ones, if it is their turn.
    """

    def __init__(
        self,
        views: dict[str, RequestView],
        serving: TenantQueues,
        decoding: RankOrder,
        guarded: RankOrder | None,
    ) -> None:
        self._views = views
        self._serving = serving
        self._guarded = guarded
        self._left_out: set[str] = set()
        ids = serving.walk(self._left_out, self._cost_of)
        if guarded is not None:
            ids = chain(guarded, (each for each in ids if each not in guarded))
        if decoding:
            ids = chain(decoding, (each for each in ids if each not in decoding))
        self._ids = ids

    def __iter__(self) -> Iterator[RequestView]:
        return self

    def __next__(self) -> RequestView:
        return self._views[next(self._ids)]

    def leave_out(self, view: RequestView) -> bool:
        """Skips the rest of that session's tenant; returns whether others may still be served."""
        is_guarded = self._guarded is not None and view.request_id in self._guarded
        if is_guarded or len(self._left_out) == MAX_LEFT_OUT:
            return False
        self._left_out.add(self._serving.tenant_of(view.request_id))
        return True

    def _cost_of(self, request_id: str) -> int:
        view = self._views[request_id]
        return 0 if view.is_loading else view.num_wanted_tokens
