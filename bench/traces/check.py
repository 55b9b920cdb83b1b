"""What must hold of a trace beyond the types of its fields. Pure.

The reader and the writer use the same checker, so that what was written can be
read. It remembers ids of sessions and of shared documents, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import NamedTuple

from bench.traces.format import (
    SCHEMA_VERSION,
    Content,
    Document,
    Event,
    Header,
    Item,
    Session,
    SharedDocument,
)
from stream2llm.errors import InvalidRequestError

# The same as the router's, which would refuse the session at replay.
MAX_ID_CHARS = 256


class TraceError(InvalidRequestError):
    """A trace cannot be used; the message names file, line and key."""


class Problem(NamedTuple):
    """What is wrong with one key of a line."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class Checker:
    """Takes the items of one trace in order."""

    def __init__(self) -> None:
        self._shared_ids: set[str] = set()
        self._session_ids: set[str] = set()
        self._last_arrival_s = 0.0

    def problems(self, item: Item) -> list[Problem]:
        """Everything wrong with the next item; a wrong one is not remembered."""
        if isinstance(item, SharedDocument):
            found = list(self._problems_of_shared(item.document))
            if not found:
                self._shared_ids.add(item.document.id)
            return found
        found = list(self._problems_of_session(item))
        if not found:
            self._session_ids.add(item.id)
            self._last_arrival_s = item.arrival_s
        return found

    def _problems_of_shared(self, document: Document) -> Iterator[Problem]:
        yield from _problems_of_document("document", document)
        if document.id in self._shared_ids:
            yield Problem("document.id", f"{document.id!r} is defined twice")

    def _problems_of_session(self, session: Session) -> Iterator[Problem]:
        yield from _problems_of_id("id", session.id)
        if session.id in self._session_ids:
            yield Problem("id", f"a session {session.id!r} came before")
        if not isfinite(session.arrival_s) or session.arrival_s < self._last_arrival_s:
            text = (
                f"{session.arrival_s!r} is before {self._last_arrival_s!r}: sessions are in order"
            )
            yield Problem("arrival_s", text)
        yield from _problems_of_content("prefix", session.prefix)
        yield from _problems_of_content("suffix", session.suffix)
        yield from _problems_of_documents(session.documents)
        own = {document.id for document in session.documents}
        yield from _problems_of_order(session.events)
        for number, event in enumerate(session.events):
            yield from self._problems_of_names(f"events.{number}.documents", event, own)

    def _problems_of_names(self, key: str, event: Event, own: set[str]) -> Iterator[Problem]:
        if event.kind == "seal":
            if event.documents:
                yield Problem(key, "a seal brings no documents")
            return
        if not event.documents:
            yield Problem(key, f"is empty; an {event.kind} names at least one")
        for each in event.documents:
            if each not in own and each not in self._shared_ids:
                yield Problem(key, f"names {each!r}, which no line so far defines")


def problems_of_header(header: Header) -> Iterator[Problem]:
    """What is wrong with the first line."""
    if header.schema_version != SCHEMA_VERSION:
        text = f"is {header.schema_version}; this program reads {SCHEMA_VERSION}"
        yield Problem("schema_version", text)
    scale = header.scale
    for key, factor in (("tokens", scale.tokens), ("time", scale.time), ("load", scale.load)):
        if not (isfinite(factor) and factor > 0):
            yield Problem(f"scale.{key}", f"must be positive (got {factor!r})")


def _problems_of_documents(documents: tuple[Document, ...]) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, document in enumerate(documents):
        key = f"documents.{number}"
        yield from _problems_of_document(key, document)
        if document.id in seen:
            yield Problem(f"{key}.id", f"{document.id!r} is defined twice")
        seen.add(document.id)


def _problems_of_document(key: str, document: Document) -> Iterator[Problem]:
    yield from _problems_of_id(f"{key}.id", document.id)
    if document.text is None and document.tokens is None:
        yield Problem(key, "needs a text or a number of tokens")
    if document.text == "":
        yield Problem(f"{key}.text", "is empty")
    if document.tokens is not None and document.tokens < 1:
        yield Problem(f"{key}.tokens", f"must be positive (got {document.tokens})")


def _problems_of_content(key: str, content: Content) -> Iterator[Problem]:
    """Prefix and suffix may be empty, documents not."""
    if content.text is None and content.tokens is None:
        yield Problem(key, "needs a text or a number of tokens")
    if content.tokens is not None and content.tokens < 0:
        yield Problem(f"{key}.tokens", f"must not be negative (got {content.tokens})")


def _problems_of_id(key: str, text: str) -> Iterator[Problem]:
    if not 1 <= len(text) <= MAX_ID_CHARS:
        yield Problem(key, f"must have 1 to {MAX_ID_CHARS} characters (got {len(text)})")


def _problems_of_order(events: tuple[Event, ...]) -> Iterator[Problem]:
    seals = [number for number, event in enumerate(events) if event.kind == "seal"]
    if seals != [len(events) - 1]:
        yield Problem("events", f"exactly one seal, and it is the last (got {len(seals)})")
    before = 0.0
    for number, event in enumerate(events):
        if not isfinite(event.at_s) or event.at_s < before:
            text = f"{event.at_s!r} is before {before!r}: offsets never decrease"
            yield Problem(f"events.{number}.at_s", text)
        before = event.at_s
