"""Reads a configuration from YAML, and says what is wrong with it by file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.config import ClusterConfig


def default_config() -> Path:
    """The file of a cluster on this machine without a GPU, which comes with the package.

    It is deploy/local-cpu.yaml; a checkout has a link to it here.
    """
    return Path(__file__).with_name("local-cpu.yaml")


def load_config(path: Path) -> ClusterConfig:
    """Reads and checks a YAML file; raises InvalidRequestError naming file and key."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{path}: not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise InvalidRequestError(f"{path}: not YAML: {_problem(error)}") from error
    return parse_config(raw, source=str(path))


def _problem(error: yaml.YAMLError) -> str:
    """In one line, with the place."""
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return f"{getattr(error, 'problem', None) or error}{where}"


def parse_config(raw: Any, *, source: str) -> ClusterConfig:
    """Checks a plain tree; `source` names it in errors."""
    try:
        return ClusterConfig.model_validate(raw)
    except ValidationError as error:
        raise InvalidRequestError(f"{source}: {_describe(error)}") from error


def _describe(error: ValidationError) -> str:
    problems = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "the top level"
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key {key}")
        else:
            problems.append(f"{key}: {item['msg']} (got {item['input']!r})")
    return "; ".join(problems)
