"""Values and messages against their invariants, for all types that the codec knows.

1. A value comes back from its message, through bytes, as it was.
2. So does an event, from every message that may carry it.
3. Value and message have the same fields, but for `codec.UNSENT`.
4. Every public message has a value, but for those named here.
5. An unset message is a value of defaults, and a number of a newer version is refused or a hint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from stream2llm.api import codec, events, requests
from stream2llm.api.errors import InternalError, InvalidRequestError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.token_step import TokenStep
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import worker_pb2
from tests.examples import examples

# Their values are the members' own, text or token ids, and requests without arguments.
WITHOUT_VALUE = {
    *("StreamGenerateRequest", "StreamGenerateResponse", "GenerateResponse"),
    *("Content", "TokenIds"),
    *("GetModelInfoRequest", "GetServerInfoRequest"),
}
CARRIERS = (pb.StreamGenerateRequest, pb.StreamGenerateResponse, pb.GenerateResponse)
KINDS = list(codec.MESSAGES)
TEXTS = st.text(max_size=8)
UINT32 = st.integers(0, 2**32 - 1)
CONTENTS = TEXTS | st.lists(UINT32, max_size=4)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_STRING: TEXTS,
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(allow_nan=False, width=32),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.CPPTYPE_UINT32: UINT32,
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
}
# A duration counts nanoseconds.
SECONDS = st.integers(0, 10**15).map(lambda nanoseconds: nanoseconds / 1e9)


@cache
def values(kind: type) -> st.SearchStrategy[Any]:
    message, hints = codec.MESSAGES[kind].DESCRIPTOR, get_type_hints(kind)
    names = {each.name for each in dataclasses.fields(kind)} - codec.UNSENT.get(kind, frozenset())
    return st.builds(kind, **{name: of_field(name, hints[name], message) for name in names})


def of_field(name: str, hint: Any, message: Descriptor) -> st.SearchStrategy[Any]:
    if NoneType in get_args(hint):
        field = message.fields_by_name.get(name)
        some = of_field(name, strip_none(hint), message)
        # Where a field cannot be unset its zero stands for None.
        return st.none() | (some if field is None or field.has_presence else some.filter(bool))
    if name in message.oneofs_by_name:
        members = message.oneofs_by_name[name].fields
        kinds = [kind for kind in KINDS if codec.MESSAGES[kind].DESCRIPTOR in types(members)]
        has_text = any(member.name == "text" for member in members)
        return st.one_of(*map(values, kinds), *([CONTENTS] if has_text else []))
    return SECONDS if name.endswith("_s") else of_item(message.fields_by_name[name], hint)


def of_item(field: FieldDescriptor, hint: Any) -> st.SearchStrategy[Any]:
    if get_origin(hint) in (dict, Mapping):
        entry = field.message_type.fields_by_name
        of_entry = [SCALARS[entry[each].cpp_type] for each in ("key", "value")]
        return st.dictionaries(*of_entry, max_size=3)
    if get_origin(hint) is tuple:
        return st.lists(of_item(field, get_args(hint)[0]), max_size=3).map(tuple)
    if field.enum_type:
        return st.sampled_from(list(hint) if isinstance(hint, type) else get_args(hint))
    if field.message_type is pb.Content.DESCRIPTOR:
        return CONTENTS
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=4)
    return values(hint) if field.message_type else SCALARS[field.cpp_type]


def strip_none(hint: Any) -> Any:
    rest = [each for each in get_args(hint) if each is not NoneType]
    return rest[0] if len(rest) == 1 else Any


def types(fields: list[FieldDescriptor]) -> list[Descriptor]:
    return [field.message_type for field in fields]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@examples(20)
@given(data=st.data())
def test_1_a_value_comes_back_from_its_message(kind: type, data: st.DataObject) -> None:
    value = data.draw(values(kind))
    encoded = codec.encode(value)
    assert codec.decode(kind, type(encoded).FromString(encoded.SerializeToString())) == value


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier.__name__)
@examples(20)
@given(data=st.data())
def test_2_an_event_comes_back_from_what_carries_it(carrier: Any, data: st.DataObject) -> None:
    event = data.draw(of_field("event", Any, carrier.DESCRIPTOR))
    assert codec.decode_event(codec.encode_event(carrier, event)) == event
    assert codec.decode_event(carrier()) is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_3_value_and_message_have_the_same_fields(kind: type) -> None:
    message = codec.MESSAGES[kind].DESCRIPTOR
    sent = {name_in_value(field) for field in message.fields}
    held = {each.name for each in dataclasses.fields(kind)}
    assert held - sent == codec.UNSENT.get(kind, frozenset())
    assert sent <= held


def name_in_value(field: FieldDescriptor) -> str:
    oneof = field.containing_oneof
    if oneof is not None and len(oneof.fields) > 1:  # an optional field is a oneof of one
        return oneof.name
    is_duration = field.message_type and field.message_type.name == "Duration"
    return f"{field.name}_s" if is_duration else field.name


def test_4_every_public_message_has_a_value() -> None:
    with_value = {message.DESCRIPTOR.name for message in codec.MESSAGES.values()}
    public = set(pb.DESCRIPTOR.message_types_by_name)
    assert public - with_value == WITHOUT_VALUE


def test_5_what_is_unset_has_its_default() -> None:
    assert codec.decode(SamplingParameters, pb.SamplingParameters()) == SamplingParameters()
    assert codec.decode(requests.OpenSession, pb.OpenSession()) == requests.OpenSession()
    assert codec.decode(requests.Document, pb.Document()) == requests.Document()
    assert codec.decode(TokenStep, worker_pb2.TokenStep()) == TokenStep(())


def test_5_a_number_of_a_newer_version_is_refused_or_a_hint() -> None:
    for name in ("ordering", "control_tokens", "oversized_documents"):
        with pytest.raises(InvalidRequestError, match=f"{name} is 99; it must be"):
            codec.decode(requests.OpenSession, pb.OpenSession(**{name: 99}))
    with pytest.raises(InternalError, match="unknown finish reason 99"):
        codec.decode(TokenStep, worker_pb2.TokenStep(finish_reason=99))
    with pytest.raises(InternalError, match="unknown, 99, to a document"):
        codec.decode(events.OversizedDocument, pb.OversizedDocument(action=99))
    assert codec.decode(requests.OpenSession, pb.OpenSession(handover=99)).handover is None
    assert codec.decode(events.Progress, pb.Progress(delay=99)).delay is None
