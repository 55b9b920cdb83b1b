"""Traces for tests: builders with defaults, and files of plain lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stream2llm.workload.traces.format import (
    SCHEMA,
    Content,
    Document,
    Event,
    Header,
    Scale,
    Session,
)


def a_header(**changes: Any) -> Header:
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": 1,
        "name": "a test",
        "provenance": "written by a test",
        "counted_by": "words",
        "scale": Scale(),
    }
    return Header(**(values | changes))


def a_session(name: str = "q0", **changes: Any) -> Session:
    """Two documents: one appended, then both in a new order."""
    values: dict[str, Any] = {
        "id": name,
        "arrival_s": 0.0,
        "prefix": Content(text="Answer."),
        "suffix": Content(tokens=5),
        "documents": (Document("a", tokens=100), Document("b", "Some text.", 3)),
        "events": (
            Event(0.5, "append", ("a",)),
            Event(1.5, "update", ("b", "a")),
            Event(1.5, "seal"),
        ),
    }
    return Session(**(values | changes))


def plain_header() -> dict[str, Any]:
    return {
        "line": "header",
        "schema": SCHEMA,
        "schema_version": 1,
        "name": "a test",
        "provenance": "written by a test",
        "counted_by": "words",
        "scale": {"tokens": 1, "time": 1, "load": 1},
    }


def plain_session(name: str = "q0") -> dict[str, Any]:
    return {
        "line": "session",
        "id": name,
        "arrival_s": 0,
        "prefix": {"text": "Answer."},
        "suffix": {"tokens": 5},
        "documents": [{"id": "a", "tokens": 100}],
        "events": [
            {"at_s": 0.5, "kind": "append", "documents": ["a"]},
            {"at_s": 0.5, "kind": "seal"},
        ],
    }


def write_lines(path: Path, *lines: dict[str, Any] | str) -> Path:
    """Objects become JSON; text stays what it is."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path
