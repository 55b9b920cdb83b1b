"""The sessions in rank order, kept up to date by events.

Sorting all sessions in every step would make each step more expensive with every
session that merely waits. Here a session is repositioned only when its view is
replaced: O(log n) per touched session, nothing for the others.

Two orders are kept: the serving order of sessions that have work, and the eviction
order of those that hold blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from sortedcontainers import SortedList

from prefill_worker.policy import Policy, RankKey
from prefill_worker.types import RequestView

_Place = tuple[RankKey, str]


class RankIndex:
    """A `Ranking` that changes with the sessions. A change invalidates its iterators."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._views: dict[str, RequestView] = {}
        self._serving = _Order()
        self._holding = _Order()
        # The promoted sessions among the serving ones.
        self._promoted = _Order()
        self._with_claim: set[str] = set()
        # Whether promoted sessions go first in this step.
        self.promoted_first = False

    @property
    def policy(self) -> Policy:
        """The policy that ranks the sessions."""
        return self._policy

    @property
    def num_with_work(self) -> int:
        """Number of sessions that have tokens to compute."""
        return len(self._serving)

    @property
    def num_promoted(self) -> int:
        """Number of promoted sessions among those with work."""
        return len(self._promoted)

    @property
    def num_with_claim(self) -> int:
        """Number of sessions with work that others may be evicted for."""
        return len(self._with_claim)

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, request_id: str) -> RequestView:
        return self._views[request_id]

    def has_work(self, request_id: str) -> bool:
        """Whether that session has tokens to compute."""
        return request_id in self._serving

    def put(self, view: RequestView) -> bool:
        """Adds or repositions a session; returns whether it has a claim."""
        request_id, has_claim = view.request_id, view.has_claim
        self._views[request_id] = view
        serve: RankKey | None
        keep: RankKey | None
        serve, keep = self._policy.keys(view, has_claim)
        if not view.num_wanted_tokens:
            serve = None
        if not view.num_blocks:
            keep = None
        if has_claim:
            self._with_claim.add(request_id)
        else:
            self._with_claim.discard(request_id)
        promotion = (view.promotion,) if serve is not None and view.promotion else None
        # Most touches do not change a session's position.
        if serve != self._serving.key_of.get(request_id):
            self._serving.place(request_id, serve)
        if keep != self._holding.key_of.get(request_id):
            self._holding.place(request_id, keep)
        if promotion != self._promoted.key_of.get(request_id):
            self._promoted.place(request_id, promotion)
        return has_claim

    def drop(self, request_id: str) -> None:
        """Removes a session that has ended."""
        del self._views[request_id]
        for order in (self._serving, self._holding, self._promoted):
            order.place(request_id, None)
        self._with_claim.discard(request_id)

    def set_policy(self, policy: Policy) -> None:
        """Ranks all sessions anew."""
        self._policy = policy
        self._serving, self._holding, self._promoted = _Order(), _Order(), _Order()
        for view in self._views.values():
            self.put(view)

    def to_serve(self) -> Iterator[RequestView]:
        """Yields sessions that have work in serving order."""
        if not self.promoted_first or not self.num_promoted:
            return map(self._views.__getitem__, self._serving)
        others = (each for each in self._serving if each not in self._promoted)
        return map(self._views.__getitem__, chain(self._promoted, others))

    def to_evict(self) -> Iterator[RequestView]:
        """Yields sessions that hold blocks in eviction order."""
        return map(self._views.__getitem__, reversed(self._holding))

    def goes_before(self, first: RequestView, second: RequestView) -> bool:
        """Whether `first` is served before `second`, and may evict it.

        A promoted session is never evicted, in whichever step.
        """
        if second.promotion:
            return self.promoted_first and 0 < first.promotion < second.promotion
        if first.promotion and self.promoted_first:
            return True
        return self._serve_key(first) < self._serve_key(second)

    @property
    def keeps_sealed_apart(self) -> bool:
        """Whether open sessions are kept out of a step that computes for sealed ones."""
        return self._policy.keeps_sealed_apart

    def may_swap_order(self, first: RequestView, second: RequestView) -> bool:
        """Whether the policy does not care in which order these two are evicted."""
        return self._policy.may_swap_order(first, second)

    def _serve_key(self, view: RequestView) -> RankKey:
        return self._policy.keys(view, view.has_claim)[0]


class _Order:
    """Request ids by key; equal keys by id."""

    def __init__(self) -> None:
        self._places: SortedList[_Place] = SortedList()
        self.key_of: dict[str, RankKey] = {}

    def __len__(self) -> int:
        return len(self.key_of)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.key_of

    def __iter__(self) -> Iterator[str]:
        return (request_id for _, request_id in self._places)

    def __reversed__(self) -> Iterator[str]:
        return (request_id for _, request_id in reversed(self._places))

    def place(self, request_id: str, key: RankKey | None) -> None:
        """Moves a request id to the position of `key`; None removes it."""
        old = self.key_of.pop(request_id, None)
        if old is not None:
            self._places.remove((old, request_id))
        if key is not None:
            self._places.add((key, request_id))
            self.key_of[request_id] = key
