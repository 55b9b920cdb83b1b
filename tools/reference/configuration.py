"""The configuration reference: a JSON schema of nested parts becomes one table for each part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tools.reference.markdown import code, one_line, prose, table

Schema = Mapping[str, Any]

_HEADER = ("key", "type", "default", "limits", "description")
_TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean"}
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_MIB = 1024 * 1024


def sections(schema: Schema) -> Iterator[str]:
    """One section for each part of the tree, the top level first."""
    definitions = schema.get("$defs", {})
    yield from _part("", schema, definitions)


def _part(path: str, schema: Schema, definitions: Schema) -> Iterator[str]:
    fields = {f"{path}{name}": field for name, field in schema["properties"].items()}
    own = {key: field for key, field in fields.items() if "$ref" not in field}
    heading = f"## {code(path.rstrip('.'))}" if path else "## Top level"
    rows = [_row(key, field) for key, field in own.items()]
    yield "\n\n".join(
        [heading, prose(schema["description"]), *([table(_HEADER, rows)] * bool(rows))]
    )
    for key, field in fields.items():
        if key not in own:
            definition = definitions[field["$ref"].rpartition("/")[2]]
            yield from _part(f"{key}.", definition, definitions)


def _row(key: str, field: Schema) -> tuple[str, ...]:
    if "description" not in field:
        raise ValueError(f"{key} has no description: write a docstring under the field")
    return (
        code(key),
        _type(field),
        _default(key, field.get("default")),
        ", ".join(f"{sign} {field[name]:g}" for name, sign in _LIMITS.items() if name in field),
        one_line(field["description"]),
    )


def _type(field: Schema) -> str:
    if "anyOf" in field:  # X or None
        return " or ".join(_type(each) for each in field["anyOf"] if each.get("type") != "null")
    if "enum" in field:
        return ", ".join(code(value) for value in field["enum"])
    if field["type"] == "object":
        values = field.get("additionalProperties")
        of = _type(values) if isinstance(values, dict) and values else "anything"
        return f"map of text to {of}"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    return _TYPES[field["type"]]


def _default(key: str, value: Any) -> str:
    if value is None:
        return "unset"
    if key.endswith("_bytes") and value % _MIB == 0:
        return f"{code(str(value))} ({value // _MIB} MiB)"
    return code(value if isinstance(value, str) else json.dumps(value))
