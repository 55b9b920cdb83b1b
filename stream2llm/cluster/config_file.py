"""Reads a configuration from YAML, and says what is wrong with it by file and key."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.processor import flags_here, suited
from stream2llm.engine.arguments import hint

# From which likeness on, 0 to 1, another key may have been meant.
_LIKENESS = 0.7


def default_config() -> Path:
    """The file of a cluster on this machine without a GPU, which comes with the package.

    It is deploy/local-cpu.yaml; a checkout has a link to it here.
    """
    return Path(__file__).with_name("local-cpu.yaml")


def chosen_config(path: Path | None, address: str | None = None) -> ClusterConfig:
    """Returns the configuration of a file, or the default one in the type that this CPU computes.

    `address`, if given, replaces that of Ray. Raises as `load_config`.
    """
    config = (
        suited(load_config(default_config()), flags_here()) if path is None else load_config(path)
    )
    if address is None:
        return config
    return config.model_copy(update={"ray": config.ray.model_copy(update={"address": address})})


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
    return "; ".join(map(_problem_at, error.errors()))


def _problem_at(item: Mapping[str, Any]) -> str:
    path, value = item["loc"], item["input"]
    key = ".".join(map(str, path))
    shown = "" if isinstance(value, dict) else f" (got {value!r})"
    match item["type"]:
        case "extra_forbidden":
            return f"unknown key {key}{hint(str(path[-1]), _keys_at(path[:-1]), _LIKENESS)}"
        case "model_type":
            return f"{key or 'the top level'} must have keys with values{shown}"
        case "value_error":  # raised by a check of ours
            message = f"{item['ctx']['error']}{shown}"
        case _:
            message = f"{item['msg']}{shown}"
    return f"{key}: {message}" if key else message


def _keys_at(path: Sequence[int | str]) -> Collection[str]:
    """Returns the keys of the section at that place; none where keys are free."""
    section: type[BaseModel] = ClusterConfig
    for part in path:
        field = section.model_fields.get(str(part))
        sections = [] if field is None else [*filter(_is_section, _types_in(field.annotation))]
        if not sections:
            return ()
        section = sections[0]
    return section.model_fields.keys()


def _types_in(annotation: Any) -> tuple[Any, ...]:
    return (annotation, *get_args(annotation))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
