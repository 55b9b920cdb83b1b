"""Requests that no client of ours sends, made from the descriptors of the services.

A case is what one RPC sends: serialized messages, in order. `mutants` takes a
well-formed RPC and changes one thing at a time: each field of each message, as deep
as they go, to each boundary value of its type; missing, doubled, swapped and foreign
messages; bytes that are no message. New fields and messages are covered without a
change here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

_INTEGERS: dict[int, tuple[int, int]] = {
    Field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    Field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    Field.CPPTYPE_UINT32: (0, 2**32 - 1),
    Field.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"))
# Becomes bytes that are not UTF-8 when the message is serialized.
_BAD_UTF8 = "=not=utf=8="
_STRINGS = (
    "",
    " ",
    "x" * 3000,
    "line\nbreak\r\x00\x1b[31m",
    "\U0001f980\u202e\ufdd0\ufeff",
    "{{context}}{{context}}",
    '{"remote_engine_id": []}',
    "../../etc/passwd",
    _BAD_UTF8,
)
_MAX_DEPTH = 4
# More than any context here.
_MANY = 6000
_TRANSFER_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 7, 2**40, 1.5, "", "other", "a:b,c", [], [[]], [[-1]], [[2**31]], [[1, 1]], {},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """What one RPC sends, and what is odd about it."""

    name: str
    messages: tuple[bytes, ...]


def mutants(messages: Sequence[Message], rng: random.Random) -> Iterator[Case]:
    """Every change of one thing of a well-formed RPC."""
    whole = [message.SerializeToString() for message in messages]
    for index, message in enumerate(messages):
        for name, changed in _changed(message, rng):
            sent = [*whole[:index], _serialized(changed), *whole[index + 1 :]]
            yield Case(f"{index}.{name}", tuple(sent))
    yield from _odd_streams(messages, whole, rng)


def random_message(kind: type[Message], rng: random.Random, depth: int = 0) -> Message:
    """A message of that type with anything in it."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if rng.random() < 0.6:
            _set(message, field, rng.choice(_values(field, rng, depth)))
    return message


def kind_of(name: str) -> type[Message]:
    """The class of a message, by its full name."""
    from google.protobuf import descriptor_pool, message_factory

    descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    kind: type[Message] = message_factory.GetMessageClass(descriptor)
    return kind


# -- one message ----------------------------------------------------------------


def _changed(message: Message, rng: random.Random, path: str = "") -> Iterator[tuple[str, Message]]:
    """Copies in which one field, of this message or of one inside, is another."""
    for field in message.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        for value in _values(field, rng, 0):
            changed = _copy(message)
            changed.ClearField(field.name)
            _set(changed, field, value)
            yield f"{name}={_short(value)}", changed
        if field.name.endswith("_json"):
            for told, text in _changed_json(getattr(message, field.name)):
                changed = _copy(message)
                setattr(changed, field.name, text)
                yield f"{name}: {told}", changed
        inner = _inner(message, field)
        if inner is None:
            continue
        for told, inside in _changed(inner, rng, f"{name}."):
            changed = _copy(message)
            _replace(changed, field, inside)
            yield told, changed


def _inner(message: Message, field: Field) -> Message | None:
    """The message in a field that is set, the first of several."""
    if field.cpp_type != Field.CPPTYPE_MESSAGE or _is_map(field):
        return None
    value = getattr(message, field.name)
    if field.is_repeated:
        return value[0] if value else None
    return value if message.HasField(field.name) else None


def _replace(message: Message, field: Field, inside: Message) -> None:
    value = getattr(message, field.name)
    (value[0] if field.is_repeated else value).CopyFrom(inside)


def _values(field: Field, rng: random.Random, depth: int) -> list[Any]:
    """Boundary values of a field's type; None leaves it out."""
    if _is_map(field):
        return [None]
    if field.is_repeated:
        ones = [value for value in _one_value(field, rng, depth) if value is not None]
        lists: list[Any] = [[], *([value] for value in ones), ones]
        if field.cpp_type in _INTEGERS:
            lists.append([1] * _MANY)
        return lists
    return [None, *_one_value(field, rng, depth)]


def _one_value(field: Field, rng: random.Random, depth: int) -> list[Any]:
    match field.cpp_type:
        case Field.CPPTYPE_BOOL:
            return [True, False]
        case Field.CPPTYPE_FLOAT | Field.CPPTYPE_DOUBLE:
            return list(_FLOATS)
        case Field.CPPTYPE_ENUM:
            return [*(value.number for value in field.enum_type.values), 99, -1]
        case Field.CPPTYPE_STRING if field.type == Field.TYPE_BYTES:
            return [b"", b"\xff" * 100]
        case Field.CPPTYPE_STRING:
            return list(_STRINGS)
        case Field.CPPTYPE_MESSAGE:
            kind = kind_of(field.message_type.full_name)
            empty = kind()
            if depth >= _MAX_DEPTH:
                return [empty]
            return [empty, *(random_message(kind, rng, depth + 1) for _ in range(2))]
    lowest, highest = _INTEGERS[field.cpp_type]
    return [*dict.fromkeys((0, 1, highest, lowest, 2**31 - 1, rng.randint(0, 50_000)))]


def _set(message: Message, field: Field, value: Any) -> None:
    if value is None:
        return
    if field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.cpp_type == Field.CPPTYPE_MESSAGE:
        getattr(message, field.name).CopyFrom(value)
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, value)


def _is_map(field: Field) -> bool:
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def _changed_json(text: str) -> Iterator[tuple[str, str]]:
    """An object with each of its keys missing, or with another value."""
    whole = json.loads(text) if text else {}
    for key in whole:
        yield f"without {key}", json.dumps({k: v for k, v in whole.items() if k != key})
        for value in _TRANSFER_VALUES:
            yield f"{key}={value}", json.dumps({**whole, key: value})
    yield "one more key", json.dumps({**whole, "more": 1})
    yield "deep", "[" * 5000


# -- a stream ----------------------------------------------------------------------


def _odd_streams(
    messages: Sequence[Message], whole: list[bytes], rng: random.Random
) -> Iterator[Case]:
    places = range(len(whole))
    # What has one message by its kind has it: for what never comes gRPC waits by itself,
    # and ends the RPC with its client.
    if len(whole) > 1:
        yield Case("nothing", ())
    for index in places:
        kind = type(messages[index])
        before, after = whole[:index], whole[index + 1 :]
        if len(whole) > 1:
            yield Case(f"without {index}", (*before, *after))
            yield Case(f"ends before {index}", tuple(before))
        yield Case(f"{index} twice", (*before, whole[index], whole[index], *after))
        yield Case(f"half of {index}", (*before, whole[index][: len(whole[index]) // 2], *after))
        yield Case(f"noise for {index}", (*before, rng.randbytes(60), *after))
        for number in range(6):
            other = _serialized(random_message(kind, rng))
            yield Case(f"random {number} for {index}", (*before, other, *after))
    for first in places:
        for second in places[first + 1 :]:
            swapped = list(whole)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            yield Case(f"{first} and {second} swapped", tuple(swapped))


def _serialized(message: Message) -> bytes:
    return message.SerializeToString().replace(_BAD_UTF8.encode(), b"\xff" * len(_BAD_UTF8))


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}... ({len(text)})"
