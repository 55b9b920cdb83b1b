"""What the importers of recorded workloads share.

A row that cannot be used is reported with file and line, and left out; the rest
is imported. Real text cannot be made longer, only cut.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from stream2llm.workload.traces.check import TraceError
from stream2llm.workload.traces.format import Content, Document, Item, Scale
from stream2llm.workload.traces.text import CountTokens, count_by_words

# A deployment's own instruction would stand here; the artifact's is not in its data.
INSTRUCTION = "Answer the question from the documents, briefly and exactly.\n\n"
# Web pages are longer than the csv module expects of a field.
csv.field_size_limit(2**31 - 1)


class BadRow(NamedTuple):
    """Something that was left out. `line` is None where a whole file is meant."""

    path: Path
    line: int | None
    text: str

    def __str__(self) -> str:
        line = "" if self.line is None else f", line {self.line}"
        return f"{self.path}{line}: {self.text}"


Report = Callable[[BadRow], None]
Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Importing:
    """How contents are taken over."""

    scale: Scale = field(default_factory=Scale)
    count_tokens: CountTokens = count_by_words
    # Keep lengths, not text.
    tokens_only: bool = False
    # Sources that are so many times as slow. A crawl's search is not.
    delay_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.scale.tokens > 1:
            raise TraceError("recorded text cannot be made longer", field="scale.tokens")

    def document(self, document_id: str, text: str) -> Document | None:
        """A document of that text, cut to scale; None when nothing is left of it."""
        kept = shortened(encodable(text), self.scale.tokens).strip()
        if not kept:
            return None
        content = self.content(f"{kept}\n\n")
        return Document(document_id, content.text, content.tokens)

    def content(self, text: str) -> Content:
        """Text that is never cut, with its count."""
        text = encodable(text)
        return Content(None if self.tokens_only else text, self.count_tokens(text))

    def question(self, text: str) -> Content:
        """The suffix of a prompt that asks it."""
        return self.content(f"Question: {text.strip()}\nAnswer:")


def shortened(text: str, factor: float) -> str:
    """The first part of a text, up to the end of a word; with a factor of 1 all of it."""
    if factor >= 1:
        return text
    length = round(len(text) * factor)
    cut = text[:length]
    if length < len(text) and not text[length].isspace():
        cut = cut.rsplit(None, 1)[0] if len(cut.split()) > 1 else cut
    return cut


def encodable(text: str) -> str:
    """Halves of surrogate pairs, which crawled JSON has, cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def csv_rows(path: Path, columns: tuple[str, ...], report: Report) -> Iterator[tuple[int, Row]]:
    """Rows with the line on which each begins; reports what cannot be read."""
    line = None
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.DictReader(file, restval="")
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                report(BadRow(path, 1, f"has no column {', '.join(missing)}"))
                return
            line = reader.line_num + 1
            for row in reader:
                yield line, row
                line = reader.line_num + 1
    except OSError as error:
        report(BadRow(path, None, f"cannot be read: {error.strerror}"))
    except csv.Error as error:
        report(BadRow(path, line, f"cannot be read further: {error}"))


def not_empty(items: Iterable[Item], source: Path) -> Iterator[Item]:
    """The same; raises TraceError when there is nothing."""
    iterator = iter(items)
    first = next(iterator, None)
    if first is None:
        raise TraceError(f"{source}: nothing in it can be imported")
    yield first
    yield from iterator


def next_arrival(arrivals_s: Iterator[float], source: Path) -> float:
    """Raises TraceError when there are less arrivals than sessions."""
    arrival_s = next(arrivals_s, None)
    if arrival_s is None:
        raise TraceError(f"{source}: has more sessions than there are arrivals")
    return arrival_s
