"""Messages out of what a caller handed in, and events out of the server's messages.

Text that cannot be encoded, a number out of range or a value of another type is an
InvalidRequestError with the field's name, by what the field's descriptor says: for the
fields of today and of tomorrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from stream2llm.api import arguments, codec
from stream2llm.api.errors import InternalError, OverloadedError
from stream2llm.api.events import Event
from stream2llm.api.sampling import bad_sampling
from stream2llm.api.v1 import inference_pb2 as pb


def message_of(value: Any, path: str = "") -> Any:
    """The message of a value of `api/requests.py`; `path` is its dotted name in errors.

    None leaves a field unset that may be unset, and is refused elsewhere.
    """
    kind = codec.MESSAGES[type(value)]
    return kind(**_checked(kind.DESCRIPTOR, codec.fields(value), path))


def check_size(message: Message, limit_bytes: int) -> None:
    """Raises before gRPC would: it ends the whole RPC and does not say why."""
    size_bytes = message.ByteSize()
    if size_bytes > limit_bytes:
        error = OverloadedError(
            f"the message has {size_bytes} bytes, {limit_bytes} are allowed: "
            "send the documents in several appends",
            reason="MESSAGE_TOO_LARGE",
        )
        error.retry_after_s = None  # the same message can never pass
        raise error


def event_from(message: pb.StreamGenerateResponse | pb.GenerateResponse) -> Event:
    """The event in a response."""
    event: Event | None = codec.decode_event(message)
    if event is None:
        raise InternalError("the server sent an event this client does not know: update the client")
    return event


def _checked(message: Any, values: codec.Fields, path: str) -> codec.Fields:
    fields = message.fields_by_name
    return {name: _checked_field(fields[name], value, path) for name, value in values.items()}


def _checked_field(field: FieldDescriptor, value: Any, path: str) -> Any:
    kind = field.message_type
    if kind is pb.TokenIds.DESCRIPTOR:  # `content_of` has checked them: there may be many
        return value
    if kind is pb.SamplingParameters.DESCRIPTOR:
        with bad_sampling():
            return _checked(kind, value, "sampling")
    check = partial(_checked, kind) if kind else _CHECKS.get(field.cpp_type)
    if check is None or (value is None and field.has_presence):
        return value
    path = _path(field, path)
    if kind and kind.GetOptions().map_entry:
        return _checked_map(kind.fields_by_name, value, path)
    if field.is_repeated:
        return [check(item, f"{path}[{index}]") for index, item in enumerate(value)]
    return check(value, path)


def _checked_map(entry: Any, values: Mapping[Any, Any], path: str) -> dict[Any, Any]:
    key, value = (_CHECKS[entry[each].cpp_type] for each in ("key", "value"))
    return {key(each, path): value(of, f"{path}[{each}]") for each, of in values.items()}


def _path(field: FieldDescriptor, path: str) -> str:
    """The name by which errors call a field, after the argument that it came from."""
    if field.containing_type in (pb.ChatTemplate.DESCRIPTOR, pb.ChatPrompt.DESCRIPTOR):
        return f"chat.{field.name}"
    if field.name == "text":
        if field.containing_type is pb.Content.DESCRIPTOR:
            return path
        if field.containing_type is not pb.ChatContentPart.DESCRIPTOR:
            return f"{path}.content" if path else "prompt"
    return f"{path}.{field.name}" if path else field.name


def _integers(lowest: int, highest: int) -> Callable[[Any, str], int]:
    return lambda value, path: arguments.integer(value, path, lowest, highest)


_CHECKS: dict[int, Callable[[Any, str], Any]] = {
    FieldDescriptor.CPPTYPE_STRING: arguments.text,
    FieldDescriptor.CPPTYPE_BOOL: arguments.truth,
    FieldDescriptor.CPPTYPE_FLOAT: arguments.number,
    FieldDescriptor.CPPTYPE_DOUBLE: arguments.number,
    FieldDescriptor.CPPTYPE_INT32: _integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: _integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: _integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: _integers(0, 2**64 - 1),
}
