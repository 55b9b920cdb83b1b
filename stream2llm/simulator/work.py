"""What a trace asks of a prefill worker, in token counts. Pure.

Equal documents are equal tokens, so that the longest common prefix of two document
lists is that of the two token sequences: instruction and leading documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from stream2llm.api.options import DocumentOrdering
from stream2llm.api.tenant import ONE_TENANT, TenantShare
from stream2llm.workload.document_orders import ORDERS, laid_out, num_leading
from stream2llm.workload.traces.format import Document, Session

# Tokens a document of the sentence that gives the model the ranking: 58 tokens for ten.
NOTE_TOKENS = 6


class Change(NamedTuple):
    """From this moment on the session's sequence is another one."""

    # Seconds after the beginning of the run, when it is submitted.
    at_s: float
    # So many of the tokens before are still valid.
    num_kept: int
    # And so many there are now.
    num_known: int
    seals: bool
    # It replaces the list of documents, even where the new one only goes on.
    is_update: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One session: what it submits, in order; the last change seals it."""

    name: str
    changes: tuple[Change, ...]
    # Length of its answer; None leaves it to the cluster's settings.
    num_output_tokens: int | None = None
    # Who asks.
    tenant: TenantShare = ONE_TENANT
    # Its first token is due so long after its seal; None: no deadline.
    ttft_slo_s: float | None = None

    @property
    def opened_s(self) -> float:
        """When it is opened."""
        return self.changes[0].at_s

    @property
    def sealed_s(self) -> float:
        """When the last of its context is submitted."""
        return self.changes[-1].at_s

    @property
    def num_tokens(self) -> int:
        """Tokens of the sealed sequence."""
        return self.changes[-1].num_known

    def later(self, seconds: float) -> Task:
        """The same, so many seconds later."""
        changes = tuple(each._replace(at_s=each.at_s + seconds) for each in self.changes)
        return replace(self, changes=changes)

    @property
    def num_longest_tokens(self) -> int:
        """Most that are known at any moment: a list may be longer before its last update."""
        return max(change.num_known for change in self.changes)


def task(
    session: Session, documents: Mapping[str, Document], ordering: str = DocumentOrdering.AS_GIVEN
) -> Task:
    """A session of a trace; `documents` has every one it names, `ordering` is one of ORDERS."""
    opened, prefix = session.arrival_s, session.prefix.num_tokens
    changes = [Change(opened, 0, prefix, seals=False)]
    current, given = list[str](), list(session.lists())
    for event, following in zip(session.events, laid_out(given, ORDERS[ordering]), strict=False):
        shared = following[: num_leading(current, following)]
        num_kept = prefix + _tokens(shared, documents)
        num_known = prefix + _tokens(following, documents)
        is_update = event.kind == "update"
        changes.append(Change(opened + event.at_s, num_kept, num_known, False, is_update))
        current = following
    num_known, seal_s = changes[-1].num_known, opened + session.events[-1].at_s
    note = NOTE_TOKENS * len(current) if given and current != list(given[-1]) else 0
    sealed = num_known + note + session.suffix.num_tokens
    changes.append(Change(seal_s, num_known, sealed, seals=True))
    return Task(session.id, tuple(changes), session.output_tokens)


def tasks(sessions: Iterable[Session], ordering: str = DocumentOrdering.AS_GIVEN) -> list[Task]:
    """Sessions whose documents are all their own."""
    return [task(each, each.document_table({}), ordering) for each in sessions]


def not_streamed(tasks: Iterable[Task]) -> list[Task]:
    """The non-streaming baseline: one prompt, when the context is complete."""
    return [
        replace(each, changes=(Change(each.sealed_s, 0, each.num_tokens, seals=True),))
        for each in tasks
    ]


def with_answers_of(tasks: Iterable[Task], num_tokens: int | None) -> list[Task]:
    """Every answer that long, whatever was recorded; None: as the cluster's settings say."""
    return [replace(each, num_output_tokens=num_tokens) for each in tasks]


def with_deadlines_of(tasks: Iterable[Task], ttft_slo_ms: int | None) -> list[Task]:
    """Every first token due so long after its seal; None: none of them."""
    slo_s = None if ttft_slo_ms is None else ttft_slo_ms / 1000
    return [replace(each, ttft_slo_s=slo_s) for each in tasks]


def invalidated_tokens(task: Task) -> int:
    """Tokens of its context that updates threw away, computed or not."""
    pairs = zip(task.changes, task.changes[1:], strict=False)
    return sum(before.num_known - after.num_kept for before, after in pairs)


def peak_tokens(tasks: Iterable[Task]) -> int:
    """Most tokens of context that open sessions know at one moment; each is open until its seal."""
    known = dict[str, int]()
    peak = 0
    # At one moment what comes counts before what goes.
    for change, each in sorted(in_order(tasks), key=lambda pair: (pair[0].at_s, pair[0].seals)):
        if change.seals:
            known.pop(each.name, None)
        else:
            known[each.name] = change.num_known
            peak = max(peak, sum(known.values()))
    return peak


def in_order(tasks: Iterable[Task]) -> Iterator[tuple[Change, Task]]:
    """All changes of all sessions as they come; those of a moment as they stand."""
    everything = [(change, each) for each in tasks for change in each.changes]
    return iter(sorted(everything, key=lambda pair: pair[0].at_s))


def _tokens(names: Iterable[str], documents: Mapping[str, Document]) -> int:
    return sum(documents[name].num_tokens for name in names)
