"""Documents for `stream2llm generate`: files, folders and standard input.

A folder gives its text files in sorted order. Standard input is cut at lines
that are just `---`, or at NUL characters, and a document is handed on as soon
as its end is seen. Knows nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from stream2llm.client.inputs import Document

SEPARATOR_LINE = "---"
NUL = "\0"


class SourceError(Exception):
    """A path that cannot be read; the message names it."""


def documents_of(paths: Iterable[str], stdin: TextIO) -> Iterator[Document]:
    """The documents behind the paths, in order; "-" is standard input."""
    for path in paths:
        if path == "-":
            yield from _named("stdin", split_documents(stdin))
        else:
            yield from _documents_at(Path(path))


def check_paths(paths: Iterable[str]) -> None:
    """Raises SourceError for the first path that does not exist."""
    for path in paths:
        if path != "-" and not Path(path).exists():
            raise SourceError(f"{path}: no such file or directory")


def split_documents(lines: Iterable[str]) -> Iterator[str]:
    """Text cut at separator lines and NULs; blank documents are left out."""
    pending: list[str] = []
    for line in lines:
        if line.rstrip("\r\n") == SEPARATOR_LINE:
            yield from _joined(pending)
            continue
        *ended, rest = line.split(NUL)
        for part in ended:
            pending.append(part)
            yield from _joined(pending)
        pending.append(rest)
    yield from _joined(pending)


def text_files(folder: Path) -> list[Path]:
    """All files below, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _joined(pending: list[str]) -> Iterator[str]:
    text = "".join(pending)
    pending.clear()
    if text.strip():
        yield text


def _named(name: str, texts: Iterable[str]) -> Iterator[Document]:
    for number, text in enumerate(texts, start=1):
        yield Document(text, id=f"{name}-{number}")


def _documents_at(path: Path) -> Iterator[Document]:
    if not path.is_dir():
        yield Document(_read(path), id=str(path))
        return
    for file in text_files(path):
        try:
            yield Document(_read(file), id=str(file))
        except SourceError:
            continue  # a folder may hold other things than text


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text") from error
    if NUL in text:
        raise SourceError(f"{path}: not a text file (it contains NUL characters)")
    return text
