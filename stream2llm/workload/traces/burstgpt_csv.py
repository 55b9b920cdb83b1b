"""Imports BurstGPT: requests to a university's ChatGPT and GPT-4 service.

A CSV with `Timestamp` in seconds, `Request tokens` and `Response tokens`, a request a line;
other columns (`Model`, `Log Type`, in later files `Session ID` and `Elapsed time`) are not
used. A request that failed has 0 response tokens: it is left out and reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stream2llm.workload.traces.arrivals import seconds_ns
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

TIME, PROMPT, OUTPUT = COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def burstgpt_sessions(
    path: Path, scale: Scale, streaming: Streaming, report: Report
) -> Iterator[Session]:
    """A session for each row; raises TraceError where the file is no BurstGPT."""
    return plain_sessions(path, usable(_requests(path), report), scale, streaming)


def _requests(path: Path) -> Iterator[Request | BadRow]:
    for line, row in rows_of(path, COLUMNS):
        try:
            prompt_tokens = num_tokens_of(PROMPT, row[PROMPT])
            output_tokens = num_tokens_of(OUTPUT, row[OUTPUT])
            yield Request(line, _time_ns(row[TIME]), prompt_tokens, output_tokens)
        except ValueError as error:
            yield BadRow(path, line, str(error))


def _time_ns(text: str) -> int:
    time_ns = seconds_ns(text.strip())
    if time_ns is None:
        raise ValueError(f"{TIME} is no number of seconds: {text!r}")
    return time_ns
