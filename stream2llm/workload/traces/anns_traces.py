"""Imports recorded vector searches, whose results get better while they run.

A JSON map names the question and the trace of each query: `{id: {query,
trace_file}}`. A trace is a CSV with a row for each time window: its document
ids in order (`PipelinePool`, such as "(62952551,79119332)"), from `StartTime_us`
to `EndTime_us`. The list of a window is there when the window ends, and the
query begins with its first window. Texts are in JSON files, id to text, of which
only the needed ones are kept: once each, as documents that sessions share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stream2llm.workload.traces.check import TraceError
from stream2llm.workload.traces.format import Document, Event, Item, Session, SharedDocument
from stream2llm.workload.traces.imports import (
    INSTRUCTION,
    BadRow,
    Importing,
    Report,
    Row,
    csv_rows,
    next_arrival,
)

COLUMNS = ("StartTime_us", "EndTime_us", "PipelinePool")
CORPUS = "retrieved_corpus_content.part.*.json"
# The artifact keeps traces in a folder of this name beside the map.
TRACE_FOLDERS = (".", "res")


class _Window(NamedTuple):
    start_us: float
    end_us: float
    names: tuple[str, ...]


class _Query(NamedTuple):
    id: str
    question: str
    trace: Path
    windows: list[_Window]


def anns_items(
    map_path: Path, arrivals_s: Iterator[float], importing: Importing, report: Report
) -> Iterator[Item]:
    """Sessions in the order of the map, each behind the documents it is the first to name."""
    queries = list(_queries(map_path, report))
    needed = {name for query in queries for window in query.windows for name in window.names}
    corpus = _corpus(map_path.parent, needed, importing, report)
    written: set[str] = set()
    for query in queries:
        factor = importing.delay_factor * importing.scale.time
        events = list(_events(query, corpus, factor, report))
        if not events:
            report(BadRow(query.trace, None, "has no usable window"))
            continue
        yield from _newly_named(events, corpus, written)
        yield Session(
            id=query.id,
            arrival_s=next_arrival(arrivals_s, map_path),
            prefix=importing.content(INSTRUCTION),
            suffix=importing.question(query.question),
            documents=(),
            events=(*events, Event(events[-1].at_s, "seal")),
        )


def _queries(map_path: Path, report: Report) -> Iterator[_Query]:
    for name, entry in _json_object(map_path, _refuse).items():
        if problem := _problem(entry):
            report(BadRow(map_path, None, f"query {name}: {problem}"))
            continue
        trace = _trace_path(map_path, entry["trace_file"])
        yield _Query(name, str(entry["query"]), trace, _windows(trace, report))


def _problem(entry: Any) -> str:
    """What is wrong with an entry of the map; empty: nothing."""
    if not isinstance(entry, dict):
        return "is no JSON object"
    if "query" not in entry:
        return "has no query"
    if not isinstance(entry.get("trace_file"), str):
        return "has no trace_file"
    return ""


def _trace_path(map_path: Path, trace_file: str) -> Path:
    """Relative to the map; the first place where it is."""
    places = [map_path.parent / folder / trace_file for folder in TRACE_FOLDERS]
    return next((place for place in places if place.is_file()), places[0])


def _windows(trace: Path, report: Report) -> list[_Window]:
    windows = []
    for line, row in csv_rows(trace, COLUMNS, report):
        try:
            windows.append(_window(row))
        except ValueError as error:
            report(BadRow(trace, line, str(error)))
    return sorted(windows, key=lambda window: window.end_us)


def _window(row: Row) -> _Window:
    """Raises ValueError that says what is wrong."""
    start_us, end_us = float(row["StartTime_us"]), float(row["EndTime_us"])
    if not 0 <= start_us <= end_us < float("inf"):
        raise ValueError(f"the window from {start_us:g} to {end_us:g} us is no time")
    parts = row["PipelinePool"].strip().strip("()[]").split(",")
    names = tuple(part.strip() for part in parts if part.strip())
    if not names:
        raise ValueError("PipelinePool names no document")
    if bad := next((name for name in names if not name.isdecimal()), None):
        raise ValueError(f"PipelinePool has {bad!r}, which is no document id")
    return _Window(start_us, end_us, names)


def _events(
    query: _Query, corpus: dict[str, Document], time_scale: float, report: Report
) -> Iterator[Event]:
    """An update for each window, without the documents that have no text."""
    begin_us = min((window.start_us for window in query.windows), default=0.0)
    unknown: dict[str, None] = {}
    for window in query.windows:
        known = tuple(name for name in window.names if name in corpus)
        unknown |= dict.fromkeys(name for name in window.names if name not in corpus)
        if known:
            yield Event((window.end_us - begin_us) / 1e6 * time_scale, "update", known)
    if unknown:
        report(BadRow(query.trace, None, f"names documents without a text: {', '.join(unknown)}"))


def _corpus(
    folder: Path, needed: set[str], importing: Importing, report: Report
) -> dict[str, Document]:
    parts = sorted(folder.glob(CORPUS))
    if not parts:
        raise TraceError(f"{folder}: has no {CORPUS}")
    corpus = {}
    for part in parts:
        for name, text in _json_object(part, report).items():
            if name in needed and isinstance(text, str):
                document = importing.document(name, text)
                if document is not None:
                    corpus[name] = document
    return corpus


def _newly_named(
    events: Iterable[Event], corpus: dict[str, Document], written: set[str]
) -> Iterator[SharedDocument]:
    for event in events:
        for name in event.documents:
            if name not in written:
                written.add(name)
                yield SharedDocument(corpus[name])


def _json_object(path: Path, report: Callable[[BadRow], None]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        report(BadRow(path, None, f"cannot be read: {error.strerror}"))
        return {}
    except ValueError as error:
        report(BadRow(path, None, f"is not JSON: {error}"))
        return {}
    if not isinstance(value, dict):
        report(BadRow(path, None, "is no JSON object"))
        return {}
    return value


def _refuse(problem: BadRow) -> None:
    """Without the map there is nothing to import."""
    raise TraceError(str(problem))
