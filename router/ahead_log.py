"""What one session hands over ahead of its seal, as its router knows it. Pure.

Offers come from prefill, name a revision of the sequence, and lag behind the
splices that the router has sent since. An offer all of whose tokens are still
those of the sequence goes to decode; another one is released, and prefill makes
a better one when it has seen the splice. A splice that changes tokens of the
fetch under way has it aborted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True, slots=True)
class Offered:
    """An offer: the KV of so many tokens of the sequence as it was at that revision."""

    revision: int
    num_tokens: int


class OfferVerdict(Enum):
    """What to do with an offer."""

    FETCH = auto()
    # Tokens of it have changed since.
    STALE = auto()


class AheadLog:
    """One session's."""

    def __init__(self) -> None:
        # Splices that prefill may not have seen: (revision, tokens kept).
        self._unseen: deque[tuple[int, int]] = deque()
        self._fetching: Offered | None = None

    @property
    def fetching(self) -> Offered | None:
        """The newest fetch that is on its way to decode, or there, and has not ended."""
        return self._fetching

    def spliced(self, revision: int, num_kept_tokens: int) -> bool:
        """The sequence changed behind so many tokens; whether the fetch is to be aborted."""
        self._unseen.append((revision, num_kept_tokens))
        return self._fetching is not None and num_kept_tokens < self._fetching.num_tokens

    def seen(self, revision: int) -> None:
        """Prefill's word includes that splice."""
        while self._unseen and self._unseen[0][0] <= revision:
            self._unseen.popleft()

    def offered(self, offer: Offered) -> OfferVerdict:
        """An offer came; with FETCH it is under way from now on.

        To be asked in the order in which prefill's messages come: `seen` of a
        later one would take an offer that is stale for a fresh one.
        """
        self.seen(offer.revision)
        kept = min((kept for _, kept in self._unseen), default=offer.num_tokens)
        if kept < offer.num_tokens:
            return OfferVerdict.STALE
        self._fetching = offer
        return OfferVerdict.FETCH

    def ended(self, offer: Offered) -> None:
        """That fetch has ended, however; a later one may be under way already."""
        if self._fetching == offer:
            self._fetching = None
