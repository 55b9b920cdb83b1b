"""Where the documents of an update stand, such that it invalidates little. Pure.

The KV of a token depends on every token before it, so what an update can keep
is a beginning of the present sequence. `layout` keeps the longest there is: up
to the first document that the update leaves out. Everything behind has to be
computed anyway, so its order is free, and it gets the order of the ranking: the
least relevant documents are those that later updates leave out first, and the
further back they stand, the less they take along. `python -m experiments document-orders`
compares this with other orders that keep as much.

Documents are known by anything hashable. One that occurs several times counts
as often.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

DocId = TypeVar("DocId", bound=Hashable)


def layout(current: Sequence[DocId], wanted: Sequence[DocId]) -> list[DocId]:
    """The documents of `wanted`, a ranking, in the order in which to lay them out.

    `current` is the order in which documents stand now.
    """
    return [wanted[index] for index in arrange(current, wanted)]


def arrange(current: Sequence[Hashable], wanted: Sequence[Hashable]) -> list[int]:
    """`layout` as places in `wanted`: the first is that of the document to stand first."""
    places = _places(wanted)
    kept = [places[document].popleft() for document in current[: num_kept(current, wanted)]]
    stays = set(kept)
    return [*kept, *(index for index in range(len(wanted)) if index not in stays)]


def num_kept(current: Sequence[Hashable], wanted: Iterable[Hashable]) -> int:
    """How many documents at the beginning of `current` no order of `wanted` needs to move."""
    left = Counter(wanted)
    for number, document in enumerate(current):
        if not left[document]:
            return number
        left[document] -= 1
    return len(current)


def _places(wanted: Sequence[DocId]) -> dict[DocId, deque[int]]:
    """Where each document occurs, in order."""
    places: dict[DocId, deque[int]] = defaultdict(deque)
    for index, document in enumerate(wanted):
        places[document].append(index)
    return places
