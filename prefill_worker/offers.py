"""Which KV to offer to decode ahead of the seal, and what offers hold. Pure.

An offer is cumulative: it names all full blocks from the start of the sequence
up to some token. Decode pulls what its prefix cache lacks of them, so nothing
crosses twice, and whatever it lost in the meantime comes again with the next.

A session has one offer in flight at most. It holds its blocks until decode has
read or said that it will not, or its lease has ended; whatever becomes of the
session. After that the offered tokens count as fetched. A fetch that came to
nothing (decode had no room) is made good by the next offer, or by the hand-over.

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
    """How offers are cut."""

    # Tokens in a block; only full blocks are offered.
    block_size: int
    # While a session computes on, an offer brings at least so many new tokens.
    # One that has nothing left to compute offers whatever it has.
    min_tokens: int = 256
    # Most blocks that offers may hold together.
    max_pinned_blocks: int = 1 << 30


@dataclass(frozen=True, slots=True)
class OfferView:
    """A session as the offer policy sees it. Counts are of tokens from its start."""

    num_computed_tokens: int
    # Not expected to change any more; 0: this session hands over at the seal.
    num_stable_tokens: int
    # Offered before, and still those of the sequence.
    num_offered_tokens: int
    # It has tokens to compute now.
    has_work: bool
    # An earlier offer has not ended.
    is_in_flight: bool


@dataclass(frozen=True, slots=True)
class MemoryView:
    """The engine's memory as the offer policy sees it."""

    # Blocks that offers hold now.
    num_pinned_blocks: int
    # A session found no block in the last step. What an offer holds no eviction
    # can free, so there are no new ones until that is over.
    is_short: bool


class Due(NamedTuple):
    """What a session offers now."""

    # Up to which token, a whole number of blocks; 0: nothing.
    num_tokens: int = 0
    # There is something to offer, once there is memory for it.
    waits_for_memory: bool = False


def next_offer(view: OfferView, memory: MemoryView, limits: OfferLimits) -> Due:
    """What to offer now."""
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
    # When its lease ends if the reader gives no sign of life, by our clock.
    deadline_s: float


@dataclass(slots=True)
class OfferState:
    """What is remembered of one session that streams its hand-over."""

    num_stable_tokens: int = 0
    num_offered_tokens: int = 0
    num_offers: int = 0
    in_flight: str | None = None


class OfferTable:
    """The offers of one engine, and who may make the next one."""

    def __init__(self, limits: OfferLimits, lease_s: float) -> None:
        self.limits = limits
        self._lease_s = lease_s
        self._sessions: dict[str, OfferState] = {}
        self._offers: dict[str, Offer] = {}
        self._num_pinned_blocks = 0

    @property
    def num_offers(self) -> int:
        """Offers that hold blocks."""
        return len(self._offers)

    @property
    def num_pinned_blocks(self) -> int:
        """References that offers hold; a block in two offers counts twice."""
        return self._num_pinned_blocks

    def offers(self) -> Iterator[Offer]:
        """All that hold blocks, oldest first."""
        return iter(self._offers.values())

    def state(self, session_id: str) -> OfferState | None:
        """A live session's, if it has ever streamed."""
        return self._sessions.get(session_id)

    def spliced(self, session_id: str, num_same_tokens: int, num_stable_tokens: int) -> None:
        """The sequence is another one behind so many tokens, and so many are stable."""
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
        """What the session offers now."""
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
        """Offers those blocks, the first ones of the session; they are held from now on."""
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
        """Nobody reads it any more: its blocks may go. None: it is no offer."""
        offer = self._offers.pop(offer_id, None)
        if offer is None:
            return None
        self._num_pinned_blocks -= len(offer.block_ids)
        state = self._sessions.get(offer.session_id)
        if state is not None and state.in_flight == offer_id:
            state.in_flight = None
        return offer

    def forget(self, session_id: str) -> None:
        """The session has ended. Its offer goes on: somebody may be reading."""
        self._sessions.pop(session_id, None)
