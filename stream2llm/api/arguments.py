"""What a caller hands in, checked: text, numbers and lists, each refused by name.

Every function takes the value and the dotted name of the field that it is for, and
returns the value as a plain Python one or raises InvalidRequestError. Integers may be
of any integer type (numpy's too), lists anything that has an order. What would be
taken for something that the caller did not mean is refused: None for a default, a
text for a list of characters, a truth value for a number.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable, Mapping, Set
from math import isfinite
from typing import Any

from stream2llm.api.errors import InvalidRequestError


def refused(
    field: str, value: object, wanted: str, reason: str | None = None
) -> InvalidRequestError:
    """The error for a value that `field` cannot have; `wanted` completes "it must be"."""
    return InvalidRequestError(
        f"{field} is {shown(value)}; it must be {wanted}", reason=reason, field=field
    )


def shown(value: object) -> str:
    """A value for an error message: short, and with its type where that is not plain."""
    if value is None or isinstance(value, bool):
        return str(value)
    short = reprlib.repr(value).encode("ascii", "backslashreplace").decode()
    return f"{short} ({type(value).__name__})"


def text(value: object, field: str) -> str:
    """Text that UTF-8 can carry; a surrogate that stands alone has no encoding."""
    if not isinstance(value, str):
        raise refused(field, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{field} cannot be encoded in UTF-8: the character at {error.start} is "
            f"U+{ord(value[error.start]):04X}, half of a surrogate pair",
            reason="NOT_ENCODABLE",
            field=field,
        ) from None
    return value


def integer(value: object, field: str, lowest: int, highest: int, reason: str | None = None) -> int:
    """An integer of any type between the limits; a truth value and a float are none."""
    wanted = f"an integer between {lowest} and {highest}"
    if isinstance(value, bool):
        raise refused(field, value, wanted, reason)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise refused(field, value, wanted, reason) from None
    if not lowest <= number <= highest:
        raise refused(field, number, wanted, reason)
    return number


def number(value: Any, field: str) -> float:
    """A real number of any type; text and truth values are none."""
    if isinstance(value, bool | str | bytes) or value is None:
        raise refused(field, value, "a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise refused(field, value, "a number") from None


def truth(value: object, field: str) -> bool:
    """True or False, and not what merely counts as one of them."""
    if isinstance(value, bool):
        return value
    if type(value).__name__ in ("bool", "bool_") and type(value).__module__ == "numpy":
        return bool(value)
    raise refused(field, value, "True or False")


def seconds(value: object, field: str) -> float | None:
    """A finite time above 0, or None for no limit."""
    if value is None:
        return None
    duration_s = number(value, field)
    if not (isfinite(duration_s) and duration_s > 0):
        raise refused(field, value, "a finite number of seconds above 0, or None for no limit")
    return duration_s


def many(value: Any, field: str, wanted: str, *single: type) -> list[Any]:
    """The items of a list; a bare item, of one of the types in `single`, is a list of one."""
    if isinstance(value, single) and not isinstance(value, bool):
        return [value]
    unordered = isinstance(value, str | bytes | bytearray | Mapping | Set)
    if unordered or not isinstance(value, Iterable):
        raise refused(field, value, wanted)
    return as_list(value)


def as_list(value: Any) -> list[Any]:
    """The items as plain Python values; arrays and tensors convert themselves, in one go."""
    convert = getattr(value, "tolist", None)
    items = convert() if callable(convert) else list(value)
    # An array without dimensions is one number.
    return items if isinstance(items, list) else [items]
