"""A trace from a file, session by session.

What is held at any moment is one line, the shared documents so far, and the ids
that the checks need. A file is refused at its first wrong line; the error names
file, line and every key that is wrong in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from stream2llm.workload.traces.check import Checker, Problem, TraceError, problems_of_header
from stream2llm.workload.traces.format import Document, Header, Line, Session, SharedDocument

_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="line")])


class TraceReader:
    """Sessions of one file, in order; a context manager. Read it once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checker = Checker()
        self._shared: dict[str, Document] = {}
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    @property
    def shared(self) -> Mapping[str, Document]:
        """Shared documents by id, as far as the file has been read."""
        return self._shared

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Session]:
        for number, raw in enumerate(self._file, 2):
            item = self._parse(raw, number)
            if isinstance(item, Header):
                raise self._error(number, [Problem("line", "a second header")])
            if problems := self._checker.problems(item):
                raise self._error(number, problems)
            if isinstance(item, SharedDocument):
                self._shared[item.document.id] = item.document
            else:
                yield item

    def _read_header(self) -> Header:
        first = self._parse(self._file.readline(), 1)
        if not isinstance(first, Header):
            raise self._error(1, [Problem("line", "the first line is the header")])
        if problems := list(problems_of_header(first)):
            raise self._error(1, problems)
        return first

    def _parse(self, raw: bytes, number: int) -> Line:
        try:
            return _LINE.validate_json(raw)
        except ValidationError as error:
            raise self._error(number, list(_problems_of(error))) from error

    def _error(self, number: int, problems: list[Problem]) -> TraceError:
        text = "; ".join(map(str, problems))
        return TraceError(f"{self._path}, line {number}: {text}", field=problems[0].key)


def read_sessions(path: Path) -> Iterator[tuple[Session, Mapping[str, Document]]]:
    """Each session with the documents it may name; raises TraceError at a wrong line."""
    with TraceReader(path) as reader:
        for session in reader:
            yield session, session.document_table(reader.shared)


def _problems_of(error: ValidationError) -> Iterable[Problem]:
    for item in error.errors(include_url=False):
        # The first part is the kind of line, which is no key.
        key = ".".join(str(part) for part in item["loc"][1:]) or "the line"
        if item["type"] == "json_invalid":
            yield Problem(key, f"not JSON: {item['ctx']['error']}")
        elif item["type"].startswith("union_tag"):
            yield Problem("line", "must be header, document or session")
        elif item["type"] == "unexpected_keyword_argument":
            yield Problem(key, "unknown key")
        elif item["type"] in ("missing", "missing_argument"):
            yield Problem(key, "is missing")
        else:
            yield Problem(key, f"{item['msg']} (got {_short(item['input'])})")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
