"""Documents for `stream2llm generate`: files, folders and standard input.

A folder yields its text files in sorted order. Files there that cannot be read, and
documents of standard input that are not text, are left out and named; a file that the user
named has to be text. Documents are yielded as soon as they are complete, under ids that
are unique and not too long for the router. Independent of sessions.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stream2llm.api.requests import Document
from stream2llm.cli.decoding import (
    DEFAULT_ENCODING,
    NotTextError,
    check_decoded,
    decode,
    decode_stream,
    encoding_of,
)
from stream2llm.cli.splitting import split_documents

STDIN = "-"
# The router's limit.
MAX_ID_CHARS = 256
# Maximum number of left out sources that are named.
MAX_NAMED = 20
_CHUNK_BYTES = 64 * 1024


class SourceError(Exception):
    """A source that cannot be read, or has no document; the message names it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How bytes become documents."""

    # For text without a byte order mark.
    encoding: str = DEFAULT_ENCODING
    # NULs end the documents of standard input, whatever separator comes first.
    null: bool = False


class LeftOut:
    """Names what is not sent, up to a number, and counts the rest."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self.count = 0

    def add(self, name: str, why: object) -> None:
        """Notes one source that is left out."""
        self.count += 1
        if self.count <= MAX_NAMED:
            self._warn(f"left out {name}: {why}")

    def finish(self) -> None:
        """Prints the count of the rest."""
        if self.count > MAX_NAMED:
            self._warn(f"left out {self.count - MAX_NAMED} more")


class Sources:
    """The documents of some paths; calls `warn` with a line for each that is left out."""

    def __init__(
        self,
        paths: Iterable[str],
        stdin: BinaryIO | None,
        reading: Reading,
        warn: Callable[[str], None],
    ) -> None:
        self._paths = list(paths)
        self._stdin = stdin
        self._reading = reading
        self._left_out = LeftOut(warn)

    def check(self) -> None:
        """Raises SourceError for the first path that does not exist, or whose beginning shows that
        it is no text."""
        for path in self._paths:
            # What is not a regular file can be read once.
            if path != STDIN and stat.S_ISREG(_stat(path).st_mode):
                with self._named(path):
                    _check_head(path, self._reading.encoding)

    def documents(self) -> Iterator[Document]:
        """Yields them in order, once. Raises SourceError for a named file that is not text, and at
        the end when there was no document."""
        ids = DocumentIds()
        num_documents = 0
        for name, text in self._texts():
            if not text.strip():
                self._left_out.add(name, "empty")
                continue
            num_documents += 1
            yield Document(text, id=ids.of(name))
        self._left_out.finish()
        if not num_documents:
            raise SourceError(self._nothing())

    def _nothing(self) -> str:
        if not self._left_out.count and self._paths == [STDIN]:
            return "standard input was empty"
        names = ", ".join(map(readable_name, self._paths))
        why = f"{self._left_out.count} left out" if self._left_out.count else "nothing is there"
        return f"no document in {names}: {why}"

    def _texts(self) -> Iterator[tuple[str, str]]:
        for path in self._paths:
            if path == STDIN:
                yield from self._stdin_texts()
            elif stat.S_ISDIR(_stat(path).st_mode):
                yield from self._folder_texts(path)
            else:
                yield readable_name(path), self._named_text(path)

    def _stdin_texts(self) -> Iterator[tuple[str, str]]:
        texts = decode_stream(_chunks(self._stdin), self._reading.encoding)
        try:
            documents = split_documents(texts, null=self._reading.null)
            for number, text in enumerate(documents, start=1):
                name = f"stdin-{number}"
                try:
                    check_decoded(text, self._reading.encoding)
                except NotTextError as error:
                    self._left_out.add(name, error)
                else:
                    yield name, text
        except NotTextError as error:
            raise SourceError(f"standard input: {error}") from error

    def _folder_texts(self, folder: str) -> Iterator[tuple[str, str]]:
        for path in text_files(folder, self._left_out):
            try:
                yield readable_name(path), _read(path, self._reading.encoding)
            except NotTextError as error:
                self._left_out.add(readable_name(path), error)
            except OSError as error:
                self._left_out.add(readable_name(path), error.strerror)

    def _named_text(self, path: str) -> str:
        with self._named(path):
            return _read(path, self._reading.encoding)

    @staticmethod
    @contextmanager
    def _named(path: str) -> Iterator[None]:
        """A file that the user named has to be text."""
        try:
            yield
        except NotTextError as error:
            raise SourceError(f"{readable_name(path)}: {error}") from error
        except OSError as error:
            raise SourceError(f"{readable_name(path)}: {error.strerror}") from error


def text_files(folder: str, left_out: LeftOut) -> Iterator[str]:
    """Yields the files below, sorted, without hidden ones. Leaves out what is not a file, links
    to folders included, so that no folder is read twice or for ever."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            if path == folder or stat.S_ISDIR(os.lstat(path).st_mode):
                waiting += reversed(_visible(path))
            elif stat.S_ISREG(mode := os.stat(path).st_mode):
                yield path
            elif stat.S_ISDIR(mode):
                left_out.add(readable_name(path), "a link to a folder; name it to have it read")
            else:
                left_out.add(readable_name(path), "not a regular file")
        except OSError as error:
            left_out.add(readable_name(path), error.strerror)


def _visible(folder: str) -> list[str]:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [os.path.join(folder, name) for name in names]


class DocumentIds:
    """Ids for names: the name itself, unless it came before or is too long."""

    def __init__(self) -> None:
        self._times_given: Counter[str] = Counter()
        self._given: set[str] = set()

    def of(self, name: str) -> str:
        """Returns an id that was not returned before."""
        document_id = ""
        while not document_id or document_id in self._given:
            self._times_given[name] += 1
            times = self._times_given[name]
            document_id = _fitting(name if times == 1 else f"{name}#{times}")
        self._given.add(document_id)
        return document_id


def _fitting(name: str) -> str:
    if len(name) <= MAX_ID_CHARS:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{digest}…{name[-(MAX_ID_CHARS - len(digest) - 1) :]}"


def readable_name(path: str) -> str:
    """Returns a path as text in one line: undecodable bytes and line breaks are escaped."""
    name = os.fsencode(Path(path) if path else "''").decode(errors="backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise SourceError(f"{readable_name(path)}: {error.strerror}") from error


def _chunks(stdin: BinaryIO | None) -> Iterator[bytes]:
    """Yields bytes as they arrive."""
    if stdin is None:
        raise SourceError("standard input is closed")
    read1: Callable[[int], bytes] = getattr(stdin, "read1")  # noqa: B009 - of buffered ones only
    try:
        while chunk := read1(_CHUNK_BYTES):
            yield chunk
    except OSError as error:
        raise SourceError(f"standard input: {error.strerror}") from error


def _check_head(path: str, encoding: str) -> None:
    """Raises NotTextError if a file's beginning is no text; of a short file that is all of it."""
    with open(path, "rb") as file:
        head = file.read(_CHUNK_BYTES)
        is_all = not file.read(1)
    if is_all or _is_binary(head, encoding):
        decode(head, encoding)


def _is_binary(head: bytes, encoding: str) -> bool:
    return encoding_of(head, encoding) == DEFAULT_ENCODING and b"\0" in head


def _read(path: str, encoding: str) -> str:
    """Returns a file's text; reads only the beginning of one that is clearly not text."""
    with open(path, "rb") as file:
        head = file.read(_CHUNK_BYTES)
        if _is_binary(head, encoding):
            return decode(head, encoding)  # raises
        return decode(head + file.read(), encoding)
