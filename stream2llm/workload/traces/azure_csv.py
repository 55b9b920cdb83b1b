"""Imports the Azure LLM inference traces of 2023 and 2024.

A CSV with `TIMESTAMP`, `ContextTokens` and `GeneratedTokens`, a request a line. The files of
2023 have times such as 2023-11-16 18:17:03.9799600 and CRLF line ends, those of 2024 name a zone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stream2llm.workload.traces.arrivals import moment_ns
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

TIME, PROMPT, OUTPUT = COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def azure_sessions(
    path: Path, scale: Scale, streaming: Streaming, report: Report
) -> Iterator[Session]:
    """A session for each row; raises TraceError where the file is none of these traces."""
    return plain_sessions(path, usable(_requests(path), report), scale, streaming)


def _requests(path: Path) -> Iterator[Request | BadRow]:
    for line, row in rows_of(path, COLUMNS):
        try:
            at_ns = _time_ns(row[TIME])
            prompt_tokens = num_tokens_of(PROMPT, row[PROMPT])
            yield Request(line, at_ns, prompt_tokens, num_tokens_of(OUTPUT, row[OUTPUT]))
        except ValueError as error:
            yield BadRow(path, line, str(error))


def _time_ns(text: str) -> int:
    try:
        return moment_ns(text)
    except ValueError:
        raise ValueError(f"{TIME} is no time: {text!r}") from None
