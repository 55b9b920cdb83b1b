"""A trace from a file, session by session.

What is held at any moment is one line, the shared documents so far, and the ids
that the checks need. A file is refused at its first wrong line; the error names
file, line and every key that is wrong in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from stream2llm.api.file_values import Problem
from stream2llm.workload.traces.check import LINE, Checker, TraceError, problems_in_values
from stream2llm.workload.traces.format import Document, Header, Line, Session, SharedDocument


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
        return first

    def _parse(self, raw: bytes, number: int) -> Line:
        try:
            return LINE.validate_json(raw)
        except ValidationError as error:
            raise self._error(number, list(problems_in_values(error))) from error

    def _error(self, number: int, problems: list[Problem]) -> TraceError:
        text = "; ".join(map(str, problems))
        return TraceError(f"{self._path}, line {number}: {text}", field=problems[0].key or None)


def read_sessions(path: Path) -> Iterator[tuple[Session, Mapping[str, Document]]]:
    """Each session with the documents it may name; raises TraceError at a wrong line."""
    with TraceReader(path) as reader:
        for session in reader:
            yield session, session.document_table(reader.shared)
