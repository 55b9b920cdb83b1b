"""A session's documents in the order of the context, and their ranking. Pure.

A document is identified by its tokens: two with equal tokens are interchangeable,
whatever their ids, and one with other tokens under an old id is another document, as
it is to the KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from router.ordering import arrange
from stream2llm.serving.sessions.prefix import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class ListedDocument:
    """A document of a list, with its content."""

    # May be empty.
    document_id: str
    tokens: Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Arrangement:
    """The document list of a session with stable ordering. Immutable."""

    # In the order of the context.
    documents: tuple[ListedDocument, ...] = ()
    # Indices into `documents`, most relevant first.
    ranking: tuple[int, ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """Indices into the list as it was sent, in the order of the context."""
        return tuple(sorted(range(len(self.ranking)), key=self.ranking.__getitem__))

    def append(self, more: Sequence[ListedDocument]) -> Arrangement:
        """Adds documents at the end, of the list and of the ranking."""
        begin = len(self.documents)
        end = begin + len(more)
        return Arrangement((*self.documents, *more), (*self.ranking, *range(begin, end)))

    def update(self, wanted: Sequence[ListedDocument]) -> Arrangement:
        """Returns the arrangement of a new list, a ranking, that keeps most KV valid."""
        order = arrange(_contents(self.documents), _contents(wanted))
        ranking = [0] * len(order)
        for place, index in enumerate(order):
            ranking[index] = place
        return Arrangement(tuple(wanted[index] for index in order), tuple(ranking))

    def hidden_ranking(self) -> tuple[int, ...]:
        """The ranking, or nothing where the context is in the order of the ranking.

        Documents without a token are left out: the model cannot see where they are.
        """
        ranking = tuple(place for place in self.ranking if len(self.documents[place].tokens))
        return () if ranking == tuple(sorted(ranking)) else ranking


def _contents(documents: Sequence[ListedDocument]) -> list[bytes]:
    # Digests: a list may hold hundreds of thousands of tokens.
    return [blake2b(each.tokens.tobytes(), digest_size=16).digest() for each in documents]
