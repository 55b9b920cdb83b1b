"""Imports public recordings of requests that are CSV files, a request a line.

Azure's LLM inference traces: the files of 2023 have times such as 2023-11-16
18:17:03.9799600 and CRLF line ends, those of 2024 name a zone. BurstGPT, requests to a
university's ChatGPT and GPT-4 service: other columns (`Model`, `Log Type`, in later
files `Session ID` and `Elapsed time`) are not used, and a request that failed has 0
response tokens: it is left out and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from stream2llm.workload.traces.arrivals import moment_ns, seconds_ns
from stream2llm.workload.traces.format import Scale, Session
from stream2llm.workload.traces.imports import BadRow, Report
from stream2llm.workload.traces.requests import (
    Request,
    Streaming,
    num_tokens_of,
    plain_sessions,
    rows_of,
    usable,
)


class Columns(NamedTuple):
    """The names of the columns that are read."""

    time: str
    prompt_tokens: str
    output_tokens: str


AZURE = Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens")
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
