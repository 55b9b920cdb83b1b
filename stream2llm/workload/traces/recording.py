"""A trace of what the sessions of an application sent.

A document keeps its id where that names one text in its session; another text under the same
id is a document of its own (`page#2`), and so is each that was appended without an id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

from stream2llm.client.recording import (
    RecordedContent,
    RecordedDocument,
    RecordedEvent,
    RecordedSession,
)
from stream2llm.workload.traces.format import (
    MAX_ID_CHARS,
    SCHEMA,
    SCHEMA_VERSION,
    Content,
    Document,
    Event,
    Header,
    Scale,
    Session,
)
from stream2llm.workload.traces.imports import Importing

# Room for what makes an id unique.
_ID_CHARS = MAX_ID_CHARS - 16
_UNNAMED = "document"


def header(name: str, provenance: str, counted_by: str) -> Header:
    """The first line of a trace that was recorded."""
    return Header(
        schema=SCHEMA,
        schema_version=SCHEMA_VERSION,
        name=name,
        provenance=provenance,
        counted_by=counted_by,
        scale=Scale(),
    )


def sessions_of(recorded: Iterable[RecordedSession], importing: Importing) -> Iterator[Session]:
    """The sessions in the order of their openings; the first one arrives at 0 s."""
    in_order = sorted(recorded, key=lambda session: session.opened_s)
    names = _Names()
    for session in in_order:
        arrival_s = _rounded(session.opened_s - in_order[0].opened_s)
        yield _session(session, names.unique(session.session_id), arrival_s, importing)


class _Names:
    """Ids that are not taken yet."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, wanted: str) -> str:
        """The id itself, or with the first number that makes it another one."""
        stem = wanted[:_ID_CHARS]
        numbered = (f"{stem}#{number}" for number in count(2))
        name = stem if stem not in self._taken else next(numbered)
        while name in self._taken:
            name = next(numbered)
        self._taken.add(name)
        return name


class _Table:
    """The documents of one session, by what they are called in its trace."""

    def __init__(self, importing: Importing) -> None:
        self._importing = importing
        self._names = _Names()
        # By the id that was sent: what it names now.
        self._current: dict[str, tuple[RecordedContent, str]] = {}
        self.documents: list[Document] = []

    def name_of(self, sent: RecordedDocument) -> str | None:
        """The document's name in the trace; None for one without content."""
        known = self._current.get(sent.id) if sent.id else None
        if known is not None and sent.content in (None, known[0]):
            return known[1]
        if not sent.content:
            return None
        name = self._names.unique(sent.id or _UNNAMED)
        content = _content(sent.content, self._importing)
        self.documents.append(Document(name, content.text, content.tokens))
        if sent.id:
            self._current[sent.id] = (sent.content, name)
        return name


def _session(
    recorded: RecordedSession, name: str, arrival_s: float, importing: Importing
) -> Session:
    table = _Table(importing)
    events = [event for each in recorded.events if (event := _event(each, table)).documents]
    return Session(
        id=name,
        arrival_s=arrival_s,
        prefix=_content(recorded.prefix, importing),
        suffix=_content(recorded.suffix, importing),
        documents=tuple(table.documents),
        events=(*events, Event(_rounded(recorded.sealed_s), "seal")),
        output_tokens=recorded.output_tokens or None,
    )


def _event(recorded: RecordedEvent, table: _Table) -> Event:
    names = (table.name_of(document) for document in recorded.documents)
    return Event(_rounded(recorded.at_s), recorded.kind, tuple(filter(None, names)))


def _content(recorded: RecordedContent, importing: Importing) -> Content:
    """Text with its count; of token ids only their number."""
    if isinstance(recorded, str):
        return importing.content(recorded) if recorded else Content(tokens=0)
    return Content(tokens=len(recorded))


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
