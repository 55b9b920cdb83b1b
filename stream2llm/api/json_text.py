"""JSON objects that travel as text in a field: tools, their arguments, variables of templates.

As text, because their keys keep their order and their numbers their form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NoReturn

from stream2llm.api import arguments
from stream2llm.api.errors import InvalidRequestError

MAX_JSON_BYTES = 256 * 1024
MAX_JSON_DEPTH = 64


def json_text(value: object, field: str) -> str:
    """Returns the text of a value; raises InvalidRequestError for what JSON does not have."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _bad_json(f"{field} cannot be written as JSON: {error}", field) from error


def json_object(text: str, field: str) -> dict[str, Any]:
    """Returns the object that the text is; raises InvalidRequestError if it is none, or too large."""
    num_bytes = len(text.encode("utf-8", "surrogatepass"))
    if num_bytes > MAX_JSON_BYTES:
        raise _bad_json(
            f"{field} has {num_bytes} bytes; at most {MAX_JSON_BYTES} are allowed", field
        )
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        is_deep = _depth(value) > MAX_JSON_DEPTH
    except RecursionError:
        is_deep = True
    except ValueError as error:
        raise _bad_json(f"{field} is not JSON: {error}", field) from error
    if is_deep:
        raise _bad_json(f"{field} is nested deeper than {MAX_JSON_DEPTH} levels", field)
    if not isinstance(value, dict):
        raise _bad_json(f"{field} is {arguments.shown(value)}; it must be a JSON object", field)
    # Escapes can write what UTF-8 cannot.
    arguments.text(json.dumps(value, ensure_ascii=False), field)
    return value


def _depth(value: Any) -> int:
    """Returns how many lists and objects are inside one another."""
    depth = 0
    level = [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [item for each in level for item in _items(each)]
    return depth


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _bad_json(message: str, field: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_JSON", field=field)
