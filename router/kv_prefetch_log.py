"""What one session hands over ahead of its seal, as its router knows it. Pure.

Decides everything that `router/kv_prefetch.py` carries out, so that a test that plays a
router decides the same. Life of an offer from prefill:

    offered -> stale: released at once, prefill makes a better one when it has seen the splice
            -> waits: all its tokens are those of the sequence
    waits   -> released: a splice changed tokens of it
            -> at decode: one at a time, in order (`next`)
    at decode -> in vain: a splice changed tokens of it, so it is to be aborted, once
              -> ended (`ended`), in vain or not

Offers name a revision of the sequence and lag behind the splices that the router
has sent since. The tokens of an offer are taken down when it comes: at the time
its fetch is sent, the sequence may be another one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

from stream2llm.serving.prefix import Tokens, as_tokens

# Where the KV lies; of no meaning here.
HandoverT = TypeVar("HandoverT")


@dataclass(frozen=True, slots=True)
class Offered:
    """An offer: the KV of so many tokens of the sequence as it was at that revision."""

    revision: int
    num_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Fetch(Generic[HandoverT]):
    """An offer that was not stale when it came."""

    what: Offered
    # The tokens that it is the KV of, whatever the sequence becomes.
    tokens: Tokens
    handover: HandoverT


class OfferVerdict(Enum):
    """What to do with an offer."""

    # It waits for its turn.
    FETCH = auto()
    # Tokens of it have changed since: release it.
    STALE = auto()


@dataclass(frozen=True, slots=True)
class Spliced(Generic[HandoverT]):
    """What to do about offers of which a splice has changed tokens."""

    # They waited, and will not be fetched: release them.
    released: tuple[HandoverT, ...] = ()
    # The fetch at decode is in vain from now on: abort it.
    aborts: bool = False


class KvPrefetchLog(Generic[HandoverT]):
    """One session's."""

    def __init__(self) -> None:
        self._sequence: Tokens = as_tokens([])
        # Splices that prefill may not have seen: (revision, tokens kept).
        self._unseen: deque[tuple[int, int]] = deque()
        # Prefill has one offer out at a time, so these are one or two.
        self._waiting: deque[Fetch[HandoverT]] = deque()
        self._at_decode: Fetch[HandoverT] | None = None
        self._is_in_vain = False

    @property
    def at_decode(self) -> Fetch[HandoverT] | None:
        """The fetch that is on its way to decode, or there, and has not ended."""
        return self._at_decode

    def spliced(self, revision: int, num_kept_tokens: int, sequence: Tokens) -> Spliced[HandoverT]:
        """The sequence is now this one, another one behind so many tokens."""
        self._sequence = sequence
        self._unseen.append((revision, num_kept_tokens))
        changed = [each for each in self._waiting if num_kept_tokens < each.what.num_tokens]
        for fetch in changed:
            self._waiting.remove(fetch)
        aborts = (
            self._at_decode is not None
            and not self._is_in_vain
            and num_kept_tokens < self._at_decode.what.num_tokens
        )
        self._is_in_vain = self._is_in_vain or aborts
        return Spliced(tuple(fetch.handover for fetch in changed), aborts)

    def seen(self, revision: int) -> None:
        """Prefill's word includes that splice."""
        while self._unseen and self._unseen[0][0] <= revision:
            self._unseen.popleft()

    def offered(self, offer: Offered, handover: HandoverT) -> OfferVerdict:
        """An offer came.

        To be asked in the order in which prefill's messages come: `seen` of a
        later one would take an offer that is stale for a fresh one.
        """
        self.seen(offer.revision)
        kept = min((kept for _, kept in self._unseen), default=offer.num_tokens)
        if kept < offer.num_tokens:
            return OfferVerdict.STALE
        tokens = self._sequence[: offer.num_tokens]
        self._waiting.append(Fetch(offer, tokens, handover))
        return OfferVerdict.FETCH

    def next(self) -> Fetch[HandoverT] | None:
        """The fetch to send to decode now; None while one is there or none waits."""
        if self._at_decode is not None or not self._waiting:
            return None
        self._at_decode, self._is_in_vain = self._waiting.popleft(), False
        return self._at_decode

    def is_in_vain(self, fetch: Fetch[HandoverT]) -> bool:
        """Whether a splice has changed tokens of the fetch since `next` gave it."""
        return fetch is self._at_decode and self._is_in_vain

    def ended(self, fetch: Fetch[HandoverT]) -> None:
        """That fetch has ended, however; nothing happens to another one."""
        if fetch is self._at_decode:
            self._at_decode, self._is_in_vain = None, False

    def close(self) -> tuple[HandoverT, ...]:
        """Gives up what waits, which is to be released."""
        waiting = tuple(fetch.handover for fetch in self._waiting)
        self._waiting.clear()
        return waiting
