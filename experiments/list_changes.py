"""How the lists of update-mode change from event to event: what a generator's updates are judged by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from stream2llm.workload.document_orders import Lists, num_leading


@dataclass(frozen=True, slots=True)
class Change:
    """One list that differs from the one before it."""

    # Documents that the list before did not have.
    num_new: int
    # Documents ahead of the first difference, as a share of the list before: 0 is its first place.
    kept_share: float


@dataclass(frozen=True, slots=True)
class ListChanges:
    """The changes of many sessions together."""

    num_sessions: int
    changes: tuple[Change, ...]

    @property
    def per_session(self) -> float:
        """Changes of a session, on average."""
        return len(self.changes) / max(self.num_sessions, 1)

    @property
    def new_documents(self) -> float:
        """New documents of a change, on average."""
        return fmean(change.num_new for change in self.changes) if self.changes else 0.0

    def share_that_keeps(self, least: float, most: float) -> float:
        """Share of the changes that keep from `least` to below `most` of the list before."""
        keeps = [least <= change.kept_share < most for change in self.changes]
        return sum(keeps) / max(len(keeps), 1)


def changes_of(sessions: Iterable[Lists]) -> ListChanges:
    """All changes of the sessions' lists; a list that repeats the one before is none."""
    found: list[Change] = []
    num_sessions = 0
    for session in sessions:
        num_sessions += 1
        found += [
            _change(*pair) for pair in pairwise(session.lists) if pair[0] and pair[0] != pair[1]
        ]
    return ListChanges(num_sessions, tuple(found))


def _change(old: Sequence[str], new: Sequence[str]) -> Change:
    return Change(len({*new} - {*old}), num_leading(old, new) / len(old))
