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
        self._num_fetching_tokens = 0

    @property
    def is_fetching(self) -> bool:
        """A fetch is at decode and has not ended."""
        return self._num_fetching_tokens > 0

    def spliced(self, revision: int, num_kept_tokens: int) -> bool:
        """The sequence changed behind so many tokens; whether the fetch is to be aborted."""
        self._unseen.append((revision, num_kept_tokens))
        return num_kept_tokens < self._num_fetching_tokens

    def seen(self, revision: int) -> None:
        """Prefill's word includes that splice."""
        while self._unseen and self._unseen[0][0] <= revision:
            self._unseen.popleft()

    def offered(self, offer: Offered) -> OfferVerdict:
        """An offer came; with FETCH it is under way from now on."""
        self.seen(offer.revision)
        kept = min((kept for _, kept in self._unseen), default=offer.num_tokens)
        if kept < offer.num_tokens:
            return OfferVerdict.STALE
        self._num_fetching_tokens = offer.num_tokens
        return OfferVerdict.FETCH

    def ended(self) -> None:
        """The fetch under way has ended, however."""
        self._num_fetching_tokens = 0
