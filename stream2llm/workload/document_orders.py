"""What the updates of one session invalidate, by the order its documents are laid out in. Pure.

In virtual time and without an engine: everything sent counts as prefilled before
the next update, so these are upper bounds of what a cluster invalidates.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from router.ordering import layout, num_kept
from stream2llm.api.options import DocumentOrdering
from stream2llm.serving.sessions.prefix import common_prefix_len

# Document ids as they stand and as a ranking has them, to those that stand next.
Order = Callable[[Sequence[str], Sequence[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Lists:
    """One session: the list of documents after each event, and their sizes in tokens."""

    lists: tuple[tuple[str, ...], ...]
    sizes: Mapping[str, int]


def as_given(current: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The order of the list."""
    return list(wanted)


def survivors_first(current: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Keeps as much as `layout`, but behind it those that stood there before new ones."""
    kept = list(current[: num_kept(current, wanted)])
    rest = [each for each in current[len(kept) :] if each in set(wanted)]
    return [*kept, *rest, *(each for each in wanted if each not in set(current))]


ORDERS: Mapping[str, Order] = {
    DocumentOrdering.AS_GIVEN: as_given,
    DocumentOrdering.STABLE: layout,
    "survivors first": survivors_first,
}


def laid_out(lists: Iterable[Sequence[str]], order: Order) -> Iterator[list[str]]:
    """Where the documents of each list stand when lists follow each other."""
    current: list[str] = []
    for wanted in lists:
        current = order(current, wanted)
        yield current


def invalidated(session: Lists, order: Order) -> int:
    """Tokens behind the first document that changes, over all updates."""
    lists = laid_out(session.lists, order)
    return sum(_lost(session, old, new) for old, new in pairwise(lists))


def left(session: Lists) -> int:
    """Tokens of documents that updates leave out: no order invalidates less."""
    return sum(
        session.sizes[each] for old, new in pairwise(session.lists) for each in {*old} - {*new}
    )


def with_foresight(session: Lists) -> int:
    """What the best order would invalidate that knows every later update.

    It chooses at each update how much of what could stay to lay out anew, in the
    ranking. The best of all where no update changes how documents that stay rank
    to each other, for then the last in the ranking is the next to leave.
    """

    leaving = [n for n, (old, new) in enumerate(pairwise(session.lists), 1) if {*old} - {*new}]

    @cache
    def least(number: int, current: tuple[str, ...]) -> int:
        if number > max(leaving, default=0):
            return 0  # whatever comes may go to the end
        nexts = _layouts(current, session.lists[number])
        return min(_lost(session, current, each) + least(number + 1, each) for each in nexts)

    return least(1, session.lists[0]) if session.lists else 0


def _layouts(current: tuple[str, ...], wanted: tuple[str, ...]) -> set[tuple[str, ...]]:
    kept = [current[:cut] for cut in range(num_kept(current, wanted) + 1)]
    return {(*each, *(name for name in wanted if name not in each)) for each in kept}


def _lost(session: Lists, old: Sequence[str], new: Sequence[str]) -> int:
    return sum(session.sizes[each] for each in old[num_leading(old, new) :])


def num_leading(old: Sequence[Hashable], new: Sequence[Hashable]) -> int:
    """How many leading documents both have, by the function that compares tokens in production."""
    numbers: dict[Hashable, int] = {}
    olds, news = ([numbers.setdefault(name, len(numbers)) for name in each] for each in (old, new))
    return common_prefix_len(olds, news)
