"""Imports recorded crawls: a folder with one `query_<i>.csv` for each question.

Rows have `type`, `query`, `content` and `endTime`, in seconds after the query's
start. A `page_scrape` with content is one appended page; the search before it
only takes time. One file is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from stream2llm.workload.traces.check import TraceError
from stream2llm.workload.traces.format import Document, Event, Session
from stream2llm.workload.traces.imports import (
    INSTRUCTION,
    BadRow,
    Importing,
    Report,
    Row,
    csv_rows,
    next_arrival,
)

COLUMNS = ("type", "query", "content", "endTime")
SEARCH, PAGE = "tavily_search", "page_scrape"


class _Page(NamedTuple):
    at_s: float
    # Line of the file; breaks ties.
    line: int
    text: str


def crawler_sessions(
    folder: Path, arrivals_s: Iterator[float], importing: Importing, report: Report
) -> Iterator[Session]:
    """A session for each file with a usable page, by growing query number."""
    files = sorted(folder.glob("query_*.csv"), key=_number)
    if not files:
        raise TraceError(f"{folder}: has no query_*.csv")
    for path in files:
        rows = list(csv_rows(path, COLUMNS, report))
        pages = _pages(path, rows, report)
        documents, events = _appended(pages, _searched_s(rows, pages), importing)
        if not events:
            report(BadRow(path, None, "has no usable page"))
            continue
        question = next((row["query"] for _, row in rows if row["query"].strip()), "")
        yield Session(
            id=path.stem,
            arrival_s=next_arrival(arrivals_s, folder),
            prefix=importing.content(INSTRUCTION),
            suffix=importing.question(question),
            documents=tuple(documents),
            events=(*events, Event(events[-1].at_s, "seal")),
        )


def _pages(path: Path, rows: Iterable[tuple[int, Row]], report: Report) -> list[_Page]:
    """The usable ones, in the order in which they were there."""
    pages = []
    for line, row in rows:
        if row["type"] == SEARCH:
            continue
        page = _page(line, row)
        if isinstance(page, str):
            report(BadRow(path, line, page))
        else:
            pages.append(page)
    return sorted(pages)


def _page(line: int, row: Row) -> _Page | str:
    """A page, or what is wrong with the row."""
    if row["type"] != PAGE:
        return f"type is {row['type']!r}, neither {SEARCH} nor {PAGE}"
    try:
        at_s = float(row["endTime"])
    except ValueError:
        return f"endTime is no number: {row['endTime']!r}"
    if not (isfinite(at_s) and at_s >= 0):
        return f"endTime is no time: {row['endTime']!r}"
    if not row["content"].strip():
        return "has no content"
    return _Page(at_s, line, row["content"])


def _searched_s(rows: Iterable[tuple[int, Row]], pages: Iterable[_Page]) -> float:
    """The end of the search, from which pages are delayed; at the latest the first page."""
    ends = [page.at_s for page in pages]
    for _, row in rows:
        if row["type"] == SEARCH:
            try:
                ends.append(float(row["endTime"]))
            except ValueError:
                continue
    return max(min(filter(isfinite, ends), default=0.0), 0.0)


def _appended(
    pages: Iterable[_Page], begun_s: float, importing: Importing
) -> tuple[list[Document], list[Event]]:
    documents: list[Document] = []
    events: list[Event] = []
    for page in pages:
        document = importing.document(f"p{len(documents)}", page.text)
        if document is not None:
            documents.append(document)
            at_s = begun_s + importing.delay_factor * (page.at_s - begun_s)
            at_s *= importing.scale.time
            events.append(Event(at_s, "append", (document.id,)))
    return documents, events


def _number(path: Path) -> tuple[int, str]:
    found = re.search(r"\d+", path.stem)
    return (int(found.group()) if found else -1, path.name)
