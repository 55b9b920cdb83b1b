"""Builds protobuf messages from a caller's values, checked by the fields' descriptors.

All of a caller's values pass through here, so that text that cannot be encoded, a number
out of range or a value of another type is an InvalidRequestError with the field's name,
for future fields too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from stream2llm.api import arguments

M = TypeVar("M", bound=Message)
Check = Callable[[Any, str], Any]


def build(kind: type[M], path: str, **values: Any) -> M:
    """Returns a message of `kind`; `path` is its dotted name in errors.

    None leaves an optional field unset, and is refused elsewhere. Enums and messages are
    taken as they are.
    """
    fields = kind.DESCRIPTOR.fields_by_name
    checked = {
        name: _checked(fields[name], value, f"{path}.{name}" if path else name)
        for name, value in values.items()
    }
    return kind(**checked)


def _checked(field: Any, value: Any, path: str) -> Any:
    check = _CHECKS.get(field.cpp_type)
    if check is None or (value is None and field.has_presence):
        return value
    if field.is_repeated:
        return [check(item, f"{path}[{index}]") for index, item in enumerate(value)]
    return check(value, path)


def _integers(lowest: int, highest: int) -> Check:
    return lambda value, path: arguments.integer(value, path, lowest, highest)


_CHECKS: dict[int, Check] = {
    FieldDescriptor.CPPTYPE_STRING: arguments.text,
    FieldDescriptor.CPPTYPE_BOOL: arguments.truth,
    FieldDescriptor.CPPTYPE_FLOAT: arguments.number,
    FieldDescriptor.CPPTYPE_DOUBLE: arguments.number,
    FieldDescriptor.CPPTYPE_INT32: _integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: _integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: _integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: _integers(0, 2**64 - 1),
}
