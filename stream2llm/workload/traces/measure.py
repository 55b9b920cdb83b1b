"""The sizes of any trace, back at the published scale. Pure.

Numbers are collected, not sessions: a trace of any length is measured in little
memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from stream2llm.workload.document_orders import num_leading
from stream2llm.workload.traces.format import Document, Scale, Session


@dataclass(frozen=True, slots=True)
class Samples:
    """One entry a session, one a gap in `gap_ms`."""

    # The prompt at the seal: prefix, final list, suffix.
    tokens: list[float] = field(default_factory=list)
    # From the arrival to the seal.
    retrieval_s: list[float] = field(default_factory=list)
    # Appends and updates.
    chunks: list[float] = field(default_factory=list)
    # Between two of them in a row.
    gap_ms: list[float] = field(default_factory=list)
    # All that updates took back: documents behind the first that differs.
    invalidated: list[float] = field(default_factory=list)

    def add(self, session: Session, table: Mapping[str, Document], scale: Scale) -> None:
        """One more session, whose documents are those of the table."""
        events = [event.at_s for event in session.events if event.kind != "seal"]
        lists = list(session.lists())
        final = _num_tokens(lists[-1] if lists else (), table)
        fixed = session.prefix.num_tokens + session.suffix.num_tokens
        self.tokens.append((fixed + final) / scale.tokens)
        self.retrieval_s.append(session.events[-1].at_s / scale.time)
        self.chunks.append(len(events))
        gaps = (after - before for before, after in pairwise(events))
        self.gap_ms.extend(1000 * gap / scale.time for gap in gaps)
        self.invalidated.append(_invalidated(lists, table) / scale.tokens)


def statistic(values: Sequence[float], name: str) -> float:
    """mean, median, min, max or P<percent>, between values by linear interpolation."""
    if not values:
        return float("nan")
    if name == "mean":
        return sum(values) / len(values)
    percent = {"min": 0.0, "median": 50.0, "max": 100.0}.get(name)
    position = (float(name[1:]) if percent is None else percent) / 100 * (len(values) - 1)
    ordered, below = sorted(values), int(position)
    above = min(below + 1, len(values) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def _num_tokens(names: Iterable[str], table: Mapping[str, Document]) -> int:
    return sum(table[name].num_tokens for name in names)


def _invalidated(lists: Sequence[tuple[str, ...]], table: Mapping[str, Document]) -> int:
    return sum(_num_tokens(old[num_leading(old, new) :], table) for old, new in pairwise(lists))
