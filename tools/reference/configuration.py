"""The configuration reference: one table per nested part of a JSON schema."""

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
    """Yields one section for each part of the tree, the top level first."""
    definitions = schema.get("$defs", {})
    yield from _part("", schema, definitions)


def _part(path: str, schema: Schema, definitions: Schema) -> Iterator[str]:
    fields = {f"{path}{name}": field for name, field in schema["properties"].items()}
    parts = {
        key: name
        for key, field in fields.items()
        if (name := _definition_named(field)) and "enum" not in definitions[name]
    }
    required = {f"{path}{name}" for name in schema.get("required", ())}
    heading = f"## {code(path.rstrip('.'))}" if path else "## Top level"
    rows = [
        _row(key, field, definitions, is_required=key in required)
        for key, field in fields.items()
        if key not in parts
    ]
    yield "\n\n".join(
        [heading, prose(schema["description"]), *([table(_HEADER, rows)] * bool(rows))]
    )
    for key, name in parts.items():
        yield from _part(f"{key}.", definitions[name], definitions)


def _definition_named(field: Schema) -> str:
    """The definition of a nested part, which may be left out, or of an Enum; "" for other values."""
    options = [each["$ref"] for each in (field, *field.get("anyOf", ())) if "$ref" in each]
    return options[0].rpartition("/")[2] if options else ""


def _row(key: str, field: Schema, definitions: Schema, *, is_required: bool) -> tuple[str, ...]:
    if "description" not in field:
        raise ValueError(f"{key} has no description: write a docstring under the field")
    return (
        code(key),
        _type(field, definitions),
        "required" if is_required else _default(key, field.get("default")),
        ", ".join(f"{sign} {field[name]:g}" for name, sign in _LIMITS.items() if name in field),
        one_line(field["description"]),
    )


def _type(field: Schema, definitions: Schema) -> str:
    if "anyOf" in field:  # X or None
        kinds = [each for each in field["anyOf"] if each.get("type") != "null"]
        return " or ".join(_type(each, definitions) for each in kinds)
    if "$ref" in field:  # an Enum's
        return _type(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "enum" in field:
        return ", ".join(code(value) for value in field["enum"])
    if field["type"] == "object":
        values = field.get("additionalProperties")
        of = _type(values, definitions) if isinstance(values, dict) and values else "anything"
        return f"map of text to {of}"
    if field["type"] == "array":
        return f"list of {_type(field['items'], definitions)}"
    return _TYPES[field["type"]]


def _default(key: str, value: Any) -> str:
    if value is None:
        return "unset"
    if key.endswith("_bytes") and value % _MIB == 0:
        return f"{code(str(value))} ({value // _MIB} MiB)"
    return code(value if isinstance(value, str) else json.dumps(value))
