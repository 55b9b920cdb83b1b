"""Recordings of requests: when each came, how long its prompt and its answer were.

What the importers of public traces share. Such a recording has no documents and no
text. A request becomes a session without instruction and question, whose context is
the whole prompt: opened when the request came, appended in parts (one, unless
`Streaming` says more), sealed with the last of them. `output_tokens` has the length
of its answer. A file is read line by line, however long it is.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from stream2llm.api.file_values import short
from stream2llm.workload.traces.arrivals import NS, moment_ns, seconds_ns
from stream2llm.workload.traces.check import TraceError
from stream2llm.workload.traces.format import Content, Document, Event, Item, Scale, Session
from stream2llm.workload.traces.imports import BadRow, Report, Row
from stream2llm.workload.traces.layout import split

# More would be a mistake in the file, not a prompt.
MAX_TOKENS = 100_000_000


class Columns(NamedTuple):
    """The names of the columns that are read."""

    time: str
    prompt_tokens: str
    output_tokens: str


# The files of 2023 have times such as 2023-11-16 18:17:03.9799600 and CRLF line ends, those of
# 2024 name a zone.
AZURE = Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens")
# Requests to a university's ChatGPT and GPT-4 service. Other columns (`Model`, `Log Type`, in later
# files `Session ID` and `Elapsed time`) are not used, and a request that failed has 0 response
# tokens: it is left out and reported.
BURSTGPT = Columns("Timestamp", "Request tokens", "Response tokens")


def azure_sessions(
    path: Path, scale: Scale, streaming: Streaming, report: Report
) -> Iterator[Session]:
    """A session for each row; raises TraceError where the file is none of these traces."""
    requests = _requests(path, AZURE, _moment_ns)
    return plain_sessions(path, usable(requests, report), scale, streaming)


def burstgpt_sessions(
    path: Path, scale: Scale, streaming: Streaming, report: Report
) -> Iterator[Session]:
    """A session for each row; raises TraceError where the file is no BurstGPT."""
    requests = _requests(path, BURSTGPT, _seconds_ns)
    return plain_sessions(path, usable(requests, report), scale, streaming)


def _requests(
    path: Path, columns: Columns, time_ns: Callable[[str], int]
) -> Iterator[Request | BadRow]:
    for line, row in rows_of(path, columns):
        try:
            prompt, output = (num_tokens_of(name, row[name]) for name in columns[1:])
            yield Request(line, time_ns(row[columns.time]), prompt, output)
        except ValueError as error:
            yield BadRow(path, line, str(error))


def _moment_ns(text: str) -> int:
    try:
        return moment_ns(text)
    except ValueError:
        raise ValueError(f"{AZURE.time} is no time: {text!r}") from None


def _seconds_ns(text: str) -> int:
    time_ns = seconds_ns(text.strip())
    if time_ns is None:
        raise ValueError(f"{BURSTGPT.time} is no number of seconds: {text!r}")
    return time_ns


class Request(NamedTuple):
    """A usable row."""

    line: int
    # By the recording's own clock.
    at_ns: int
    prompt_tokens: int
    # Tokens of the answer.
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Streaming:
    """How a recorded prompt is split into appends."""

    num_parts: int = 1
    # From one part to the next; the first is there when the session opens.
    gap_s: float = 0.0

    def appends(self, documents: tuple[str, ...]) -> Iterator[Event]:
        """Each part an append of about as many documents; one of each at least."""
        num_parts = min(self.num_parts, len(documents))
        ends = accumulate(split(len(documents), [1.0] * num_parts), initial=0)
        for number, (begin, end) in enumerate(pairwise(ends)):
            yield Event(number * self.gap_s, "append", documents[begin:end])


class Arrivals:
    """Offsets from the first request; raises TraceError where time goes back."""

    def __init__(self, path: Path, load: float) -> None:
        self._path = path
        self._load = load
        self._first_ns: int | None = None
        self._last: Request | None = None

    def offset_s(self, request: Request) -> float:
        """When its session arrives."""
        last, self._last = self._last, request
        if last is not None and request.at_ns < last.at_ns:
            back_s = (last.at_ns - request.at_ns) / NS
            raise TraceError(
                f"{self._path}, line {request.line}: is {back_s:g} s before line {last.line}; "
                "requests must be in the order of their times: sort the file"
            )
        if self._first_ns is None:
            self._first_ns = request.at_ns
        return (request.at_ns - self._first_ns) / NS / self._load


def session_of(
    number: int,
    request: Request,
    arrival_s: float,
    prompt: tuple[Document, ...],
    own: tuple[Document, ...],
    streaming: Streaming,
) -> Session:
    """A session that appends its prompt's documents; those that no other has are its own."""
    events = tuple(streaming.appends(tuple(document.id for document in prompt)))
    return Session(
        id=f"r{number}",
        arrival_s=arrival_s,
        prefix=Content(tokens=0),
        suffix=Content(tokens=0),
        documents=own,
        events=(*events, Event(events[-1].at_s, "seal")),
        output_tokens=request.output_tokens,
    )


def plain_sessions(
    path: Path, requests: Iterable[Request], scale: Scale, streaming: Streaming
) -> Iterator[Session]:
    """Sessions of which nothing is known but sizes: no two share a beginning."""
    arrivals = Arrivals(path, scale.load)
    for number, request in enumerate(requests):
        documents = own_documents(request, scale, streaming)
        arrival_s = arrivals.offset_s(request)
        yield session_of(number, request, arrival_s, documents, documents, streaming)


def own_documents(request: Request, scale: Scale, streaming: Streaming) -> tuple[Document, ...]:
    """The prompt in as many equal parts as it is streamed in."""
    num_tokens = scale.scaled(request.prompt_tokens)
    sizes = split(num_tokens, [1.0] * min(streaming.num_parts, num_tokens))
    return tuple(Document(f"d{part}", tokens=size) for part, size in enumerate(sizes))


def first_sessions(items: Iterable[Item], count: int | None) -> Iterator[Item]:
    """The first so many, each behind the documents that it shares; None: all."""
    left = count
    for item in items:
        yield item
        if left is not None and isinstance(item, Session):
            left -= 1
            if not left:
                return


def rows_of(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """Rows of a CSV, one a line, with their lines; raises TraceError where it is another file."""
    try:
        # The byte order mark is no part of the first column's name.
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.DictReader(file, restval="")
            found = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = found
            if missing := [name for name in columns if name not in found]:
                raise TraceError(
                    f"{path}, line 1: has no column {', '.join(missing)} (it has: "
                    f"{', '.join(found) or 'nothing'})"
                )
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise TraceError(f"{path}: cannot be read further: {error}") from error


def usable(found: Iterable[Request | BadRow], report: Report) -> Iterator[Request]:
    """Requests; what is none is reported and left out."""
    for each in found:
        if isinstance(each, BadRow):
            report(each)
        else:
            yield each


def num_tokens_of(name: str, value: object) -> int:
    """A number of tokens, from text or JSON; raises ValueError that names the field."""
    try:
        number = float(value) if isinstance(value, str | int | float) else float("nan")
    except (ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or not isfinite(number) or number != int(number):
        raise ValueError(f"{name} is no whole number: {short(value)}")
    if not 1 <= number <= MAX_TOKENS:
        raise ValueError(f"{name} is {short(value)}; must be 1 to {MAX_TOKENS:,}")
    return int(number)
