"""A session's documents as they stand in the context, and their ranking. Pure.

A document is what its tokens are: two that say the same are interchangeable,
whatever they are called, and one that says something else under an old id is
another document. That is how the KV cache sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from router.ordering import arrange
from stream2llm.serving.prefix import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class ListedDocument:
    """A document of a list, with its content."""

    # May be empty.
    document_id: str
    tokens: Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Arrangement:
    """The list of a session with stable ordering. Events make new ones of it."""

    # In the order in which they stand.
    documents: tuple[ListedDocument, ...] = ()
    # Places in `documents`, most relevant first.
    ranking: tuple[int, ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """Places in the list as it was sent, in the order in which the documents stand."""
        return tuple(sorted(range(len(self.ranking)), key=self.ranking.__getitem__))

    def append(self, more: Sequence[ListedDocument]) -> Arrangement:
        """More documents at the end, of the list and of the ranking."""
        begin = len(self.documents)
        end = begin + len(more)
        return Arrangement((*self.documents, *more), (*self.ranking, *range(begin, end)))

    def update(self, wanted: Sequence[ListedDocument]) -> Arrangement:
        """The new list, a ranking; its documents stand so that much stays valid."""
        order = arrange(_contents(self.documents), _contents(wanted))
        ranking = [0] * len(order)
        for place, index in enumerate(order):
            ranking[index] = place
        return Arrangement(tuple(wanted[index] for index in order), tuple(ranking))

    def untold_ranking(self) -> tuple[int, ...]:
        """What the model cannot see: the ranking, or nothing where documents stand in it.

        Documents without a token are left out: nobody can see where they are.
        """
        ranking = tuple(place for place in self.ranking if len(self.documents[place].tokens))
        return () if ranking == tuple(sorted(ranking)) else ranking


def _contents(documents: Sequence[ListedDocument]) -> list[bytes]:
    # Digests: a list may hold hundreds of thousands of tokens.
    return [blake2b(each.tokens.tobytes(), digest_size=16).digest() for each in documents]
