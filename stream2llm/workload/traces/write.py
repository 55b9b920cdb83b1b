"""A trace into a file, item by item.

Nothing is written that could not be read back. The file appears under its name
when it is whole; until then, and after a failure, the name is untouched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from stream2llm.api.file_values import Problem
from stream2llm.workload.traces.check import LINE, Checker, TraceError, problems_in_values
from stream2llm.workload.traces.format import Header, Item, Line


class TraceWriter:
    """Writes lines to an open file; `open_writer` makes one."""

    def __init__(self, file: BinaryIO, header: Header, *, source: str) -> None:
        self._file = file
        self._source = source
        self._checker = Checker()
        self.num_lines = 0
        self.add(header)

    def add(self, line: Line) -> None:
        """The next line; raises TraceError for one that does not fit."""
        self.num_lines += 1
        if problems := self._problems_of(line):
            text = "; ".join(map(str, problems))
            message = f"{self._source}, line {self.num_lines}: {text}"
            raise TraceError(message, field=problems[0].key)
        self._file.write(LINE.dump_json(line, exclude_none=True) + b"\n")

    def _problems_of(self, line: Line) -> list[Problem]:
        try:
            LINE.validate_python(line)
        except ValidationError as error:
            return list(problems_in_values(error))
        return [] if isinstance(line, Header) else self._checker.problems(line)


@contextmanager
def open_writer(path: Path, header: Header) -> Iterator[TraceWriter]:
    """A writer whose file takes its place when the block ends well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield TraceWriter(file, header, source=str(path))
        part.replace(path)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_trace(path: Path, header: Header, items: Iterable[Item]) -> int:
    """Writes all of them; returns the number of lines."""
    with open_writer(path, header) as writer:
        for item in items:
            writer.add(item)
        return writer.num_lines
