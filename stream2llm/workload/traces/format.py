"""The trace format: what each line of a file holds. Values only.

A file is JSON Lines: one header, then sessions in the order of their arrival,
and documents that several sessions share, each before the first session that
names it. Times are seconds, sizes are tokens. docs/benchmarks.md has the table.
What must hold beyond the types is `check`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import ConfigDict

SCHEMA: Final = "stream2llm.trace"
# What is written. Version 2 added a session's output tokens; files of version 1 are read as well.
SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
# A string is no number, and a key that is not known is a typing error.
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Shape = Literal["crawler", "anns"]
EventKind = Literal["append", "update", "seal"]
# Whitespace-separated words of English prose to tokens; SmolLM2's tokenizer has
# 1.37 on the sentences of `text`. Only where tokens were not counted.
TOKENS_PER_WORD = 1.37


@dataclass(frozen=True, slots=True)
class Scale:
    """What the recorded or published sizes were multiplied with; 1 leaves them."""

    # Prompt lengths.
    tokens: float = 1.0
    # Offsets within a session; arrivals are not touched.
    time: float = 1.0
    # Sessions a second.
    load: float = 1.0

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Header:
    """The first line."""

    line: Literal["header"] = field(default="header", kw_only=True)
    schema: Literal["stream2llm.trace"]
    schema_version: int
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

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Content:
    """Text, or how many tokens of filler stand for it; with both, the text counts so many."""

    text: str | None = None
    tokens: int | None = None

    __pydantic_config__ = _STRICT

    @property
    def num_tokens(self) -> int:
        """As the file says, else estimated from the words; 0 only for nothing."""
        return _num_tokens(self.text, self.tokens)


@dataclass(frozen=True, slots=True)
class Document:
    """Content that events name by its id."""

    id: str
    text: str | None = None
    tokens: int | None = None

    __pydantic_config__ = _STRICT

    @property
    def num_tokens(self) -> int:
        """As the file says, else estimated from the words; 0 only for nothing."""
        return _num_tokens(self.text, self.tokens)


def _num_tokens(text: str | None, tokens: int | None) -> int:
    if tokens is not None:
        return tokens
    words = len((text or "").split())
    return max(round(words * TOKENS_PER_WORD), 1) if text else 0


@dataclass(frozen=True, slots=True)
class SharedDocument:
    """A line: a document that every later session may name."""

    line: Literal["document"] = field(default="document", kw_only=True)
    document: Document

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Event:
    """Something a session sends."""

    # After the session's arrival.
    at_s: float
    kind: EventKind
    # append: more at the end. update: the whole new list. seal: none.
    documents: tuple[str, ...] = ()

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Session:
    """A line: one question, from its arrival to its seal."""

    line: Literal["session"] = field(default="session", kw_only=True)
    id: str
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
    output_tokens: int | None = None

    __pydantic_config__ = _STRICT

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

    def document_table(self, shared: Mapping[str, Document]) -> dict[str, Document]:
        """Every document it may name, its own before shared ones of the same id."""
        named = {document_id for event in self.events for document_id in event.documents}
        table = {each: shared[each] for each in named if each in shared}
        return table | {document.id: document for document in self.documents}


Item = SharedDocument | Session
Line = Header | Item
