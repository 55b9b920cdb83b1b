"""What must hold of a trace beyond the limits of its fields (`format`). Pure.

The reader and the writer use the same checker, so that what was written can be
read. It remembers ids of sessions and of shared documents, nothing else; numbered
ids ("r0", "r1", ...) take no memory however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.file_values import Problem, problems_in
from stream2llm.workload.traces.format import (
    Content,
    Document,
    Event,
    Item,
    Line,
    Session,
    SharedDocument,
)

LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="line")])
# Most digits of a number at the end of an id; int() refuses thousands of digits.
MAX_DIGITS = 18


class TraceError(InvalidRequestError):
    """A trace cannot be used; the message names file, line and key."""


def problems_in_values(error: ValidationError) -> Iterator[Problem]:
    """What pydantic found in one line."""
    if any(item["type"].startswith("union_tag") for item in error.errors(include_url=False)):
        yield Problem("line", "must be header, document or session")
    else:
        # The first part of a key is the kind of line, which is no key.
        yield from problems_in(error, skip=1)


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
        yield from _problems_of_content("document", document)
        if document.id in self._shared_ids:
            yield Problem("document.id", f"{document.id!r} is defined twice")

    def _problems_of_session(self, session: Session) -> Iterator[Problem]:
        if session.id in self._session_ids:
            yield Problem("id", f"a session {session.id!r} came before")
        if session.arrival_s < self._last_arrival_s:
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


def _problems_of_documents(documents: tuple[Document, ...]) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, document in enumerate(documents):
        key = f"documents.{number}"
        yield from _problems_of_content(key, document)
        if document.id in seen:
            yield Problem(f"{key}.id", f"{document.id!r} is defined twice")
        seen.add(document.id)


def _problems_of_content(key: str, content: Content | Document) -> Iterator[Problem]:
    if content.text is None and content.tokens is None:
        yield Problem(key, "needs a text or a number of tokens")


def _problems_of_order(events: tuple[Event, ...]) -> Iterator[Problem]:
    seals = [number for number, event in enumerate(events) if event.kind == "seal"]
    if seals != [len(events) - 1]:
        yield Problem("events", f"exactly one seal, and it is the last (got {len(seals)})")
    before = 0.0
    for number, event in enumerate(events):
        if event.at_s < before:
            text = f"{event.at_s!r} is before {before!r}: offsets never decrease"
            yield Problem(f"events.{number}.at_s", text)
        before = event.at_s
