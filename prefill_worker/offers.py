"""Decides which KV to offer to decode before the seal, and tracks what offers hold. Pure.

An offer is cumulative: it names all full blocks from the start of the sequence up to
some token. Decode reads those that its prefix cache lacks, so nothing crosses twice,
and whatever it has lost in the meantime comes again with the next offer.

A session has at most one offer in flight. It holds its blocks until decode has read
or refused them, or its lease has ended, whatever happens to the session. After that
the offered tokens count as fetched. If the fetch failed (decode had no room), the
next offer or the hand-over makes up for it.

    none --offer--> in flight --ended--> offered up to n
                        |
                        +-- splice: offered up to the common prefix; the offer
                            goes on until it ends
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class OfferLimits:
    """The parameters of offers."""

    # Tokens per block; only full blocks are offered.
    block_size: int
    # While a session still computes, an offer has at least this many new tokens.
    # A session without work offers whatever it has.
    min_tokens: int = 256
    # Maximum number of blocks that all offers may hold.
    max_pinned_blocks: int = 1 << 30


@dataclass(frozen=True, slots=True)
class OfferView:
    """A session as the offer policy sees it. Counts are of tokens from its start."""

    num_computed_tokens: int
    # Not expected to change any more; 0 for a session that hands over at the seal.
    num_stable_tokens: int
    # Offered before, and still part of the sequence.
    num_offered_tokens: int
    # The session has tokens to compute now.
    has_work: bool
    # An earlier offer has not ended.
    is_in_flight: bool


@dataclass(frozen=True, slots=True)
class MemoryView:
    """The engine's memory as the offer policy sees it."""

    # Blocks that offers hold now.
    num_pinned_blocks: int
    # A session found no block in the last step. Eviction cannot free offered blocks,
    # so there are no new offers meanwhile.
    is_short: bool


class Due(NamedTuple):
    """The offer that a session makes now."""

    # Tokens to offer, whole blocks; 0: none.
    num_tokens: int = 0
    # There are tokens to offer once there is memory for it.
    waits_for_memory: bool = False


def next_offer(view: OfferView, memory: MemoryView, limits: OfferLimits) -> Due:
    """Decides what to offer now."""
    size = limits.block_size
    num_blocks = min(view.num_computed_tokens, view.num_stable_tokens) // size
    num_new_tokens = num_blocks * size - view.num_offered_tokens
    least = limits.min_tokens if view.has_work else size
    if view.is_in_flight or num_new_tokens < max(least, size):
        return Due()
    if memory.is_short or memory.num_pinned_blocks + num_blocks > limits.max_pinned_blocks:
        return Due(waits_for_memory=True)
    return Due(num_blocks * size)


@dataclass(frozen=True, slots=True)
class Offer:
    """Blocks that wait for a reader."""

    offer_id: str
    session_id: str
    block_ids: tuple[int, ...]
    # End of its lease without heartbeats of the reader, by our clock.
    deadline_s: float


@dataclass(slots=True)
class OfferState:
    """The state of one session that streams its hand-over."""

    num_stable_tokens: int = 0
    num_offered_tokens: int = 0
    num_offers: int = 0
    in_flight: str | None = None


class OfferTable:
    """The offers of one engine, and the sessions that may make more."""

    def __init__(self, limits: OfferLimits, lease_s: float) -> None:
        self.limits = limits
        self._lease_s = lease_s
        self._sessions: dict[str, OfferState] = {}
        self._offers: dict[str, Offer] = {}
        self._num_pinned_blocks = 0

    @property
    def num_offers(self) -> int:
        """Number of offers that hold blocks."""
        return len(self._offers)

    @property
    def num_pinned_blocks(self) -> int:
        """Number of references that offers hold; a block in two offers counts twice."""
        return self._num_pinned_blocks

    def offers(self) -> Iterator[Offer]:
        """Yields all that hold blocks, oldest first."""
        return iter(self._offers.values())

    def state(self, session_id: str) -> OfferState | None:
        """Returns a live session's state, if it has ever streamed."""
        return self._sessions.get(session_id)

    def spliced(self, session_id: str, num_same_tokens: int, num_stable_tokens: int) -> None:
        """The sequence changed behind `num_same_tokens`; `num_stable_tokens` are stable."""
        state = self._sessions.get(session_id)
        if state is None:
            if not num_stable_tokens:
                return
            state = self._sessions[session_id] = OfferState()
        state.num_stable_tokens = num_stable_tokens
        whole = num_same_tokens - num_same_tokens % self.limits.block_size
        state.num_offered_tokens = min(state.num_offered_tokens, whole)

    def due(
        self, session_id: str, num_computed_tokens: int, *, has_work: bool, is_short: bool
    ) -> Due:
        """Returns what the session offers now."""
        state = self._sessions.get(session_id)
        if state is None:
            return Due()
        view = OfferView(
            num_computed_tokens=num_computed_tokens,
            num_stable_tokens=state.num_stable_tokens,
            num_offered_tokens=state.num_offered_tokens,
            has_work=has_work,
            is_in_flight=state.in_flight is not None,
        )
        memory = MemoryView(self._num_pinned_blocks, is_short=is_short)
        return next_offer(view, memory, self.limits)

    def make(self, session_id: str, block_ids: tuple[int, ...], now_s: float) -> Offer:
        """Offers the session's first blocks, which are held from now on."""
        state = self._sessions[session_id]
        assert state.in_flight is None, f"{session_id} has an offer in flight"
        state.num_offers += 1
        offer_id = f"{session_id}#{state.num_offers}"
        offer = Offer(offer_id, session_id, block_ids, now_s + self._lease_s)
        state.in_flight = offer_id
        state.num_offered_tokens = len(block_ids) * self.limits.block_size
        self._offers[offer_id] = offer
        self._num_pinned_blocks += len(block_ids)
        return offer

    def end(self, offer_id: str) -> Offer | None:
        """Ends an offer whose blocks are no longer read; None for an id that is no offer's."""
        offer = self._offers.pop(offer_id, None)
        if offer is None:
            return None
        self._num_pinned_blocks -= len(offer.block_ids)
        state = self._sessions.get(offer.session_id)
        if state is not None and state.in_flight == offer_id:
            state.in_flight = None
        return offer

    def forget(self, session_id: str) -> None:
        """The session has ended. Its offer stays, since decode may be reading it."""
        self._sessions.pop(session_id, None)
