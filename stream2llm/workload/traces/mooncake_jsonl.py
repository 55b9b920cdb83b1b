"""Imports Mooncake's traces, in which requests share the beginnings of their prompts.

JSON Lines: `timestamp` in milliseconds, `input_length` and `output_length` in tokens, and
`hash_ids`, an id for each block of 512 tokens of the prompt, the last of which may be shorter.
Equal ids stand for equal text at equal places: each id becomes a document that sessions
share, so that replays and prefix caches find in it what the recorded service found. A line
without `hash_ids` shares nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stream2llm.workload.traces.arrivals import NS
from stream2llm.workload.traces.check import TraceError
from stream2llm.workload.traces.format import Document, Item, Scale, SharedDocument
from stream2llm.workload.traces.imports import BadRow, Report
from stream2llm.workload.traces.requests import (
    Arrivals,
    Request,
    Streaming,
    num_tokens_of,
    own_documents,
    session_of,
)

BLOCK_TOKENS = 512
KEYS = ("timestamp", "input_length", "output_length")
# Lines are read at most so far: a file without line ends is none of these.
MAX_LINE_BYTES = 64 * 2**20


class _Prompt(NamedTuple):
    request: Request
    # One for each block; empty where the line has none.
    hash_ids: tuple[int, ...]


def mooncake_items(
    path: Path, scale: Scale, streaming: Streaming, report: Report, block_tokens: int = BLOCK_TOKENS
) -> Iterator[Item]:
    """Sessions in the order of the file, each behind the blocks it is the first to name."""
    arrivals = Arrivals(path, scale.load)
    written: set[str] = set()
    for number, (request, hash_ids) in enumerate(_prompts(path, block_tokens, report)):
        arrival_s = arrivals.offset_s(request)
        if not hash_ids:
            own = own_documents(request, scale, streaming)
            yield session_of(number, request, arrival_s, own, own, streaming)
            continue
        blocks = _blocks(request, hash_ids, scale, block_tokens)
        for block in blocks:
            if block.id not in written:
                written.add(block.id)
                yield SharedDocument(block)
        yield session_of(number, request, arrival_s, blocks, (), streaming)


def _blocks(
    request: Request, hash_ids: tuple[int, ...], scale: Scale, block_tokens: int
) -> tuple[Document, ...]:
    """A document for each; a short block is another one than a whole block of the same id."""
    *whole, last = hash_ids
    rest = request.prompt_tokens - block_tokens * len(whole)
    last_name = f"h{last}" if rest == block_tokens else f"h{last}/{rest}"
    return (
        *(Document(f"h{each}", tokens=scale.scaled(block_tokens)) for each in whole),
        Document(last_name, tokens=scale.scaled(rest)),
    )


def _prompts(path: Path, block_tokens: int, report: Report) -> Iterator[_Prompt]:
    for line, raw in _lines(path):
        try:
            yield _prompt(line, raw, block_tokens)
        except ValueError as error:
            report(BadRow(path, line, str(error)))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank; the first without its byte order mark."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES:
                    raise TraceError(f"{path}, line {number}: is longer than {MAX_LINE_BYTES:,} B")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error


def _prompt(line: int, raw: str, block_tokens: int) -> _Prompt:
    """Raises ValueError that says what is wrong."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
    if missing := [key for key in KEYS if key not in value]:
        raise ValueError(f"has no {', '.join(missing)}")
    at_ns = _milliseconds_ns(value["timestamp"])
    prompt_tokens = num_tokens_of("input_length", value["input_length"])
    output_tokens = num_tokens_of("output_length", value["output_length"])
    hash_ids = _hash_ids(value.get("hash_ids", []), prompt_tokens, block_tokens)
    return _Prompt(Request(line, at_ns, prompt_tokens, output_tokens), hash_ids)


def _milliseconds_ns(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise ValueError(f"timestamp is no number of milliseconds: {value!r}")
    return round(value * (NS // 1000))


def _hash_ids(value: Any, prompt_tokens: int, block_tokens: int) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(each) is not int for each in value):
        raise ValueError("hash_ids is no list of whole numbers")
    needed = -(-prompt_tokens // block_tokens)
    if value and len(value) != needed:
        raise ValueError(
            f"has {len(value)} hash_ids for {prompt_tokens} tokens; {needed} blocks of "
            f"{block_tokens} hold them"
        )
    if len(set(value)) != len(value):
        raise ValueError("hash_ids has one block twice")
    return tuple(value)
