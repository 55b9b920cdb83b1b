"""Lays out the documents of an update such that it invalidates little KV. Pure.

The KV of a token depends on every token before it, so an update can keep a prefix of
the present sequence. `layout` keeps the longest possible one: up to the first document
that the update leaves out. Everything behind has to be computed anyway, so its order is
free, and it gets the order of the ranking: later updates leave out the least relevant
documents first, and the further back those are, the less they invalidate.
`python -m experiments document-orders` compares this with other orders that keep as much.

Documents are identified by any hashable value. One that occurs several times counts
as often.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

DocId = TypeVar("DocId", bound=Hashable)


def layout(current: Sequence[DocId], wanted: Sequence[DocId]) -> list[DocId]:
    """Returns the documents of `wanted`, a ranking, in the order in which to lay them out.

    `current` is the present order of the documents.
    """
    return [wanted[index] for index in arrange(current, wanted)]


def arrange(current: Sequence[Hashable], wanted: Sequence[Hashable]) -> list[int]:
    """Returns `layout` as indices into `wanted`, that of the first document first."""
    places = _places(wanted)
    kept = [places[document].popleft() for document in current[: num_kept(current, wanted)]]
    stays = set(kept)
    return [*kept, *(index for index in range(len(wanted)) if index not in stays)]


def num_kept(current: Sequence[Hashable], wanted: Iterable[Hashable]) -> int:
    """Returns how many leading documents of `current` can stay for the set `wanted`."""
    left = Counter(wanted)
    for number, document in enumerate(current):
        if not left[document]:
            return number
        left[document] -= 1
    return len(current)


def _places(wanted: Sequence[DocId]) -> dict[DocId, deque[int]]:
    """Returns the indices of each document, in order."""
    places: dict[DocId, deque[int]] = defaultdict(deque)
    for index, document in enumerate(wanted):
        places[document].append(index)
    return places
