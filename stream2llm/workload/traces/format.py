"""The trace format: what each line of a file holds. Values only.

A file is JSON Lines: one header, then sessions in the order of their arrival,
and documents that several sessions share, each before the first session that
names it. Times are seconds, sizes are tokens. docs/benchmarks.md has the table.
What must hold between values is `check`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from typing import Annotated, Final, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from stream2llm.api.file_values import file_value

SCHEMA: Final = "stream2llm.trace"
# What is written. Version 2 added a session's output tokens; files of version 1 are read as well.
SCHEMA_VERSION: Final = 2
# The router's limit, which would refuse the session at replay.
MAX_ID_CHARS = 256
_Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]

Shape = Literal["crawler", "anns"]
EventKind = Literal["append", "update", "seal"]
# Whitespace-separated words of English prose to tokens; SmolLM2's tokenizer has
# 1.37 on the sentences of `text`. Only where tokens were not counted.
TOKENS_PER_WORD = 1.37


@file_value
class Scale:
    """What the recorded or published sizes were multiplied with; 1 leaves them."""

    # Prompt lengths.
    tokens: PositiveFloat = 1.0
    # Offsets within a session; arrivals are not touched.
    time: PositiveFloat = 1.0
    # Sessions a second.
    load: PositiveFloat = 1.0

    def scaled(self, num_tokens: int) -> int:
        """A length in tokens; at least one."""
        return max(round(num_tokens * self.tokens), 1)


@file_value
class Header:
    """The first line."""

    line: Literal["header"] = field(default="header", kw_only=True)
    schema: Literal["stream2llm.trace"]
    schema_version: Literal[1, 2]
    name: str
    # What made the file: a command, or a sentence.
    provenance: str
    # Who counted the tokens: "words", or "tokenizer NAME".
    counted_by: str
    scale: Scale
    # None when nothing in it is random.
    seed: int | None = None
    # Which published workload it is to be compared with; None for any other.
    shape: Shape | None = None


@file_value
class Content:
    """Text, or how many tokens of filler stand for it; with both, the text counts so many."""

    text: str | None = None
    tokens: NonNegativeInt | None = None

    @property
    def num_tokens(self) -> int:
        """As the file says, else estimated from the words; 0 only for nothing."""
        return _num_tokens(self.text, self.tokens)


@file_value
class Document:
    """Content that events name by its id."""

    id: _Id
    text: Annotated[str, Field(min_length=1)] | None = None
    tokens: PositiveInt | None = None

    @property
    def num_tokens(self) -> int:
        """As the file says, else estimated from the words; 0 only for nothing."""
        return _num_tokens(self.text, self.tokens)


def _num_tokens(text: str | None, tokens: int | None) -> int:
    if tokens is not None:
        return tokens
    words = len((text or "").split())
    return max(round(words * TOKENS_PER_WORD), 1) if text else 0


@file_value
class SharedDocument:
    """A line: a document that every later session may name."""

    line: Literal["document"] = field(default="document", kw_only=True)
    document: Document


@file_value
class Event:
    """Something a session sends."""

    # After the session's arrival.
    at_s: float
    kind: EventKind
    # append: more at the end. update: the whole new list. seal: none.
    documents: tuple[str, ...] = ()


@file_value
class Session:
    """A line: one question, from its arrival to its seal."""

    line: Literal["session"] = field(default="session", kw_only=True)
    id: _Id
    # After the beginning of the trace.
    arrival_s: float
    # Before the documents: the instruction.
    prefix: Content
    # Behind them: the question. It comes with the seal.
    suffix: Content
    # Its own; shared ones are not repeated.
    documents: tuple[Document, ...]
    events: tuple[Event, ...]
    # How long its answer was where it was recorded; None where the trace does not say.
    output_tokens: PositiveInt | None = None

    def lists(self) -> Iterator[tuple[str, ...]]:
        """The document list after each append and update."""
        current: tuple[str, ...] = ()
        for event in self.events:
            if event.kind == "append":
                current += event.documents
            elif event.kind == "update":
                current = event.documents
            else:
                return
            yield current

    def with_gaps(self, factor: float) -> Session:
        """The gaps between chunks so many times as long; the first one comes when it did."""
        first_s = self.events[0].at_s
        events = (
            replace(each, at_s=first_s + factor * (each.at_s - first_s)) for each in self.events
        )
        return replace(self, events=tuple(events))

    def document_table(self, shared: Mapping[str, Document]) -> dict[str, Document]:
        """Every document it may name, its own before shared ones of the same id."""
        named = {document_id for event in self.events for document_id in event.documents}
        table = {each: shared[each] for each in named if each in shared}
        return table | {document.id: document for document in self.documents}


Item = SharedDocument | Session
Line = Header | Item
