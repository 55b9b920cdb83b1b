"""Splits a stream of text into documents, each as soon as its end has arrived.

Documents end at lines that are just `---`, or at NUL characters: whichever comes first is
the separator of the whole stream, and the other is text from then on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from stream2llm.cli.decoding import NUL

SEPARATOR_LINE = "---"
_AT_LINES = re.compile(f"^{SEPARATOR_LINE}\n", re.MULTILINE)
_AT_NULS = re.compile(NUL)
_AT_EITHER = re.compile(f"{NUL}|^{SEPARATOR_LINE}\n", re.MULTILINE)


def split_documents(texts: Iterable[str], *, null: bool = False) -> Iterator[str]:
    """Yields the documents of a text that arrives in pieces; blank ones are left out.

    With `null`, NULs end documents, whatever comes first.
    """
    splitter = _Splitter(_AT_NULS if null else _AT_EITHER)
    for text in texts:
        yield from filter(str.strip, splitter.feed(text))
    yield from filter(str.strip, splitter.finish())


class _Splitter:
    """Holds the document that has not ended yet."""

    def __init__(self, separator: re.Pattern[str]) -> None:
        self._separator = separator
        self._pieces: list[str] = []
        # Not examined to its end: one character that "^" looks back at, and behind it what
        # may be the beginning of a separator line.
        self._held = "\n"

    def feed(self, text: str) -> Iterator[str]:
        """Yields the documents that end in this piece."""
        text = self._held + text
        begin = 1
        while found := self._separator.search(text, begin):
            self._separator = _AT_NULS if found[0] == NUL else _AT_LINES
            yield self._document(text[begin : found.start()])
            begin = found.end()
        end = max(begin, _certain_end(text))
        self._pieces.append(text[begin:end])
        self._held = text[end - 1 :]

    def finish(self) -> Iterator[str]:
        """Yields the last document, which needs no separator."""
        rest = self._held[1:]
        is_separator = rest == SEPARATOR_LINE and self._separator is not _AT_NULS
        yield self._document("" if is_separator else rest)

    def _document(self, last_piece: str) -> str:
        self._pieces.append(last_piece)
        document = "".join(self._pieces)
        self._pieces.clear()
        return document


def _certain_end(text: str) -> int:
    """Returns the end of the text that cannot belong to a separator line."""
    line_begin = text.rfind("\n", -len(SEPARATOR_LINE) - 1) + 1
    return line_begin if line_begin and SEPARATOR_LINE.startswith(text[line_begin:]) else len(text)
