"""A RunRecord to a file and back, without loss.

JSON, one object: schema, version and the record as `stream2llm.workload.records` has it, so
that other programs read it too. Fields that a later version added have defaults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from stream2llm.api.errors import InvalidRequestError
from stream2llm.workload.records import RunRecord

SCHEMA: Final = "stream2llm.run"
SCHEMA_VERSION: Final = 1
_RUN: TypeAdapter[RunRecord] = TypeAdapter(RunRecord)


class RunFileError(InvalidRequestError):
    """A file holds no run that can be read; the message names it and the key."""


def run_to_text(run: RunRecord) -> str:
    """The file's content; raises ValueError for a number that JSON cannot hold."""
    value = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        # A whole number where the type says float is no reason to warn.
        "run": _RUN.dump_python(run, warnings=False),
    }
    return json.dumps(value, allow_nan=False) + "\n"


def run_from_text(text: str | bytes, source: str) -> RunRecord:
    """The record in a file's content; raises RunFileError naming `source`."""
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise RunFileError(f"{source}: is not JSON: {error}") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise RunFileError(f"{source}: is no run: its schema is not {SCHEMA}", field="schema")
    if value.get("schema_version") != SCHEMA_VERSION:
        found = value.get("schema_version")
        problem = f"{source}: has version {found!r}; this program reads {SCHEMA_VERSION}"
        raise RunFileError(problem, field="schema_version")
    return _validated(value.get("run"), source)


def save_run(run: RunRecord, path: Path) -> None:
    """Writes the file; raises RunFileError when it cannot."""
    try:
        path.write_text(run_to_text(run), encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"{path}: cannot be written: {error.strerror}") from error


def load_run(path: Path) -> RunRecord:
    """Reads what `save_run` wrote; raises RunFileError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read: {error.strerror}") from error
    return run_from_text(text, str(path))


def _validated(value: Any, source: str) -> RunRecord:
    try:
        return _RUN.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(("run", *map(str, first["loc"])))
        raise RunFileError(f"{source}: {key}: {first['msg']}", field=key) from error
