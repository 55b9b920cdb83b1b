"""Spans as plain values: what a component decides, and `tracing` writes. Pure.

Instants are seconds of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Attribute = str | bool | int | float | tuple[str, ...]
Attributes = Mapping[str, Attribute]

# Most spans, events or other notes of one kind that a trace keeps of one session.
MAX_NOTES = 128

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Moment:
    """An event of a span."""

    name: str
    at_s: float
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanError:
    """Why what the span stands for did not succeed."""

    # A reason of `Stream2LLMError`, or the name of an exception.
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A span that has ended, with those within it."""

    name: str
    begin_s: float
    end_s: float
    attributes: Attributes = field(default_factory=dict)
    moments: tuple[Moment, ...] = ()
    error: SpanError | None = None
    children: tuple[SpanRecord, ...] = ()


class Notes(Generic[T]):
    """A list that keeps the first `MAX_NOTES` items and counts the others."""

    def __init__(self) -> None:
        self.kept: list[T] = []
        self.num_left_out = 0

    def add(self, note: T) -> None:
        """Adds a note, or counts it."""
        if len(self.kept) < MAX_NOTES:
            self.kept.append(note)
        else:
            self.num_left_out += 1


def present(attributes: Mapping[str, Attribute | None]) -> dict[str, Attribute]:
    """Returns the attributes that have a value."""
    return {name: value for name, value in attributes.items() if value is not None}
