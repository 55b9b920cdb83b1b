"""What must hold of a trace beyond the types of its fields. Pure.

The reader and the writer use the same checker, so that what was written can be
read. It remembers ids of sessions and of shared documents, nothing else; numbered
ids ("r0", "r1", ...) take no memory however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import NamedTuple

from stream2llm.api.errors import InvalidRequestError
from stream2llm.workload.traces.format import (
    READABLE_VERSIONS,
    Content,
    Document,
    Event,
    Header,
    Item,
    Session,
    SharedDocument,
)

# The same as the router's, which would refuse the session at replay.
MAX_ID_CHARS = 256
# Of a number at the end of an id that counts as one; int() refuses thousands of digits.
MAX_DIGITS = 18


class TraceError(InvalidRequestError):
    """A trace cannot be used; the message names file, line and key."""


class Problem(NamedTuple):
    """What is wrong with one key of a line."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class SeenIds:
    """A set of ids in which runs of numbered ones are kept as their first and last number."""

    def __init__(self) -> None:
        # By what stands before the number: a run without gaps.
        self._runs: dict[str, tuple[int, int]] = {}
        self._others: set[str] = set()

    def __contains__(self, name: str) -> bool:
        stem, number = _stem_and_number(name)
        first, last = self._runs.get(stem, (0, -1))
        return first <= number <= last or name in self._others

    def add(self, name: str) -> None:
        """One more; adding one twice changes nothing."""
        stem, number = _stem_and_number(name)
        if number < 0:
            self._others.add(name)
        elif name not in self:
            self._add_numbered(stem, number)

    def _add_numbered(self, stem: str, number: int) -> None:
        first, last = self._runs.get(stem, (number, number - 1))
        if number == last + 1:
            self._runs[stem] = (first, number)
        elif first == last:
            # Hardly a run: the new one may become one.
            self._others.add(f"{stem}{first}")
            self._runs[stem] = (number, number)
        else:
            self._others.add(f"{stem}{number}")


def _stem_and_number(name: str) -> tuple[str, int]:
    """ "r12" is ("r", 12); -1 stands for no number, also where it has a 0 in front."""
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    is_plain = digits and (digits == "0" or digits[0] != "0")
    return (stem, int(digits)) if is_plain and len(digits) <= MAX_DIGITS else (name, -1)


class Checker:
    """Takes the items of one trace in order."""

    def __init__(self) -> None:
        self._shared_ids: set[str] = set()
        self._session_ids = SeenIds()
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
        if session.output_tokens is not None and session.output_tokens < 1:
            yield Problem("output_tokens", f"must be positive (got {session.output_tokens})")

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
    if header.schema_version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        text = f"is {header.schema_version}; this program reads {readable}"
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
