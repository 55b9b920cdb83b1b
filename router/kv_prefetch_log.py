"""The state of one session's KV prefetch at its router. Pure.

Makes all decisions that `router/kv_prefetch.py` carries out, so that a test that acts
as a router makes the same ones. Life of an offer from prefill:

    offered -> stale: released at once; prefill makes a new one when it has the splice
            -> waits: all its tokens are those of the sequence
    waits   -> released: a splice changed tokens of it
            -> at decode: one at a time, in order (`next`)
    at decode -> invalid: a splice changed tokens of it, so it is aborted, once
              -> ended (`ended`), invalid or not
    any    -> void: the prefill worker is lost; what decode has read stays with it

Offers name a revision of the sequence, and may lag behind splices that the router has
sent since. An offer's tokens are copied when it arrives: when its fetch is sent, the
sequence may have changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

from stream2llm.serving.sessions.prefix import Tokens, as_tokens

# Where the KV lies; opaque here.
HandoverT = TypeVar("HandoverT")


@dataclass(frozen=True, slots=True)
class Offered:
    """An offer: the KV of the first `num_tokens` tokens of the sequence at `revision`."""

    revision: int
    num_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Fetch(Generic[HandoverT]):
    """An offer that was not stale when it arrived."""

    what: Offered
    # The tokens of its KV, whatever the sequence becomes.
    tokens: Tokens
    handover: HandoverT


class OfferVerdict(Enum):
    """What to do with an offer."""

    # It waits to be fetched.
    FETCH = auto()
    # A splice has changed tokens of it: release it.
    STALE = auto()


@dataclass(frozen=True, slots=True)
class Spliced(Generic[HandoverT]):
    """What to do with offers whose tokens a splice has changed."""

    # Waiting offers that will not be fetched: release them.
    released: tuple[HandoverT, ...] = ()
    # The fetch at decode has become useless: abort it.
    aborts: bool = False


class KvPrefetchLog(Generic[HandoverT]):
    """The prefetch state of one session."""

    def __init__(self) -> None:
        self._sequence: Tokens = as_tokens([])
        # Splices that prefill may not have seen: (revision, tokens kept). Lists, because there are
        # few and an empty deque has 600 bytes.
        self._unseen: list[tuple[int, int]] = []
        # One or two, because prefill has one offer in flight at a time.
        self._waiting: list[Fetch[HandoverT]] = []
        self._at_decode: Fetch[HandoverT] | None = None
        self._is_in_vain = False

    @property
    def at_decode(self) -> Fetch[HandoverT] | None:
        """The fetch that was sent to decode and has not ended."""
        return self._at_decode

    def spliced(self, revision: int, num_kept_tokens: int, sequence: Tokens) -> Spliced[HandoverT]:
        """The sequence is `sequence` now, changed behind its first `num_kept_tokens` tokens."""
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

    def lost(self) -> Spliced[HandoverT]:
        """The prefill worker is lost, and with it the KV of every offer."""
        aborts = self._at_decode is not None and not self._is_in_vain
        self._is_in_vain = self._is_in_vain or aborts
        return Spliced(self.close(), aborts)

    def seen(self, revision: int) -> None:
        """A message from prefill includes that splice."""
        while self._unseen and self._unseen[0][0] <= revision:
            self._unseen.pop(0)

    def offered(self, offer: Offered, handover: HandoverT) -> OfferVerdict:
        """Takes an offer.

        Call it in the order of prefill's messages: after `seen` of a later one, a stale
        offer would look fresh.
        """
        self.seen(offer.revision)
        kept = min((kept for _, kept in self._unseen), default=offer.num_tokens)
        if kept < offer.num_tokens:
            return OfferVerdict.STALE
        tokens = self._sequence[: offer.num_tokens]
        self._waiting.append(Fetch(offer, tokens, handover))
        return OfferVerdict.FETCH

    def next(self) -> Fetch[HandoverT] | None:
        """Returns the fetch to send to decode now; None while one is there or none waits."""
        if self._at_decode is not None or not self._waiting:
            return None
        self._at_decode, self._is_in_vain = self._waiting.pop(0), False
        return self._at_decode

    def is_in_vain(self, fetch: Fetch[HandoverT]) -> bool:
        """Whether a splice has changed tokens of the fetch since `next` returned it."""
        return fetch is self._at_decode and self._is_in_vain

    def ended(self, fetch: Fetch[HandoverT]) -> None:
        """That fetch has ended, in whatever way; ignored for another one."""
        if fetch is self._at_decode:
            self._at_decode, self._is_in_vain = None, False

    def close(self) -> tuple[HandoverT, ...]:
        """Drops and returns the waiting offers, which have to be released."""
        waiting = tuple(fetch.handover for fetch in self._waiting)
        self._waiting.clear()
        return waiting
