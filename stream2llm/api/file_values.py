"""Values that files hold: frozen, checked by pydantic when they are read and written.

What pydantic finds comes out as a list of problems, each at a dotted key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def file_value(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass whose fields may have limits, as pydantic writes them.

    A string is no number, and a key without a reader is a typing error. Values that were
    made in Python are checked again before they are written.
    """
    made = dataclass(frozen=True, slots=True)(cls)
    made.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        extra="forbid", strict=True, allow_inf_nan=False, revalidate_instances="always"
    )
    return made


class Problem(NamedTuple):
    """Something wrong at a dotted key, such as `swap_in.points.3.seconds`."""

    # Empty: it is about the whole file, or the whole line.
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


def problems_in(error: ValidationError, *, skip: int = 0) -> Iterator[Problem]:
    """What pydantic found; `skip` parts of keys are left away."""
    for item in error.errors(include_url=False):
        key = ".".join(map(str, item["loc"][skip:]))
        if item["type"] == "json_invalid":
            yield Problem(key, f"not JSON: {item['ctx']['error']}")
        elif item["type"] == "unexpected_keyword_argument":
            yield Problem(key, "unknown key")
        elif item["type"] in ("missing", "missing_argument"):
            yield Problem(key, "is missing")
        else:
            yield Problem(key, f"{item['msg']} (got {short(item['input'])})")


def short(value: object) -> str:
    """A value for a message: its beginning, if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
