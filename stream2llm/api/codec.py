"""Values to protobuf messages and back, field by field of the same name.

    dataclass                                message
    number, text, truth value                the same
    X | None                                 unset; zero, where a field cannot be unset
    X = default                              the default, when unset
    tuple[X, ...]                            repeated
    enum, or a Literal of names              enum of the same names, in capitals
    name_s: float                            google.protobuf.Duration name
    dataclass                                message (MESSAGES says which)
    text or token ids (Content)              Content, or a oneof of text and token_ids
    union of dataclasses                     oneof of that name

A field in only one of the two is an error; UNSENT lists the exceptions. How each field
is converted is worked out once for each type, at its first use.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from stream2llm.api import events, requests, token_step
from stream2llm.api.errors import InternalError, Stream2LLMError
from stream2llm.api.options import ControlTokens, DocumentOrdering, OversizedDocuments, bad_option
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.api.tenant import TenantShare
from stream2llm.api.v1 import inference_pb2, worker_pb2

V = TypeVar("V")
M = TypeVar("M", bound=Message)
Fields = dict[str, Any]

MESSAGES: dict[type, type[Message]] = {
    events.Accepted: inference_pb2.SessionAccepted,
    events.Progress: inference_pb2.Progress,
    events.OversizedDocument: inference_pb2.OversizedDocument,
    events.TokenDelta: inference_pb2.TokenDelta,
    events.Usage: inference_pb2.Usage,
    events.Timings: inference_pb2.Timings,
    events.Finished: inference_pb2.GenerationFinished,
    events.ModelInfo: inference_pb2.GetModelInfoResponse,
    events.WorkerInfo: inference_pb2.WorkerInfo,
    events.TenantInfo: inference_pb2.TenantInfo,
    events.RecoveryInfo: inference_pb2.RecoveryInfo,
    events.ServerInfo: inference_pb2.GetServerInfoResponse,
    requests.Document: inference_pb2.Document,
    requests.ChatMessage: inference_pb2.ChatMessage,
    requests.ChatContentPart: inference_pb2.ChatContentPart,
    requests.ToolCall: inference_pb2.ToolCall,
    requests.PlainTemplate: inference_pb2.PlainTemplate,
    requests.ChatTemplate: inference_pb2.ChatTemplate,
    requests.ChatPrompt: inference_pb2.ChatPrompt,
    requests.ResumedAnswer: inference_pb2.ResumedAnswer,
    requests.ResumedSession: inference_pb2.ResumedSession,
    requests.OpenSession: inference_pb2.OpenSession,
    requests.AppendContext: inference_pb2.AppendContext,
    requests.UpdateContext: inference_pb2.UpdateContext,
    requests.SealContext: inference_pb2.SealContext,
    requests.GenerateRequest: inference_pb2.GenerateRequest,
    SamplingParameters: inference_pb2.SamplingParameters,
    StructuredOutput: inference_pb2.StructuredOutput,
    token_step.Logprob: inference_pb2.Logprob,
    token_step.TokenLogprobs: inference_pb2.TokenLogprobs,
    token_step.TokenStep: worker_pb2.TokenStep,
    PrefillProgress: worker_pb2.PrefillProgress,
    TenantShare: worker_pb2.Tenant,
}
# `sequence` is a field of the message around the event, `one_shot` says which RPC it came by.
UNSENT: dict[type, frozenset[str]] = {
    requests.OpenSession: frozenset({"sequence", "one_shot"}),
    requests.AppendContext: frozenset({"sequence"}),
    requests.UpdateContext: frozenset({"sequence"}),
    requests.SealContext: frozenset({"sequence"}),
}


def fields(value: Any) -> Fields:
    """The arguments with which the value's message is made."""
    return _CODECS[type(value)].fields(value)


def encode(value: Any) -> Any:
    """The message that `decode` reads back to an equal value."""
    return MESSAGES[type(value)](**fields(value))


def decode(kind: type[V], message: Message) -> V:
    """The value in a message.

    Raises the domain's error for a number that is no option; where it was only a hint,
    such a number counts as unset.
    """
    value: V = _CODECS[kind].decode(message)
    return value


def encode_event(kind: type[M], event: Any) -> M:
    """A message of `kind` with the one event in it."""
    return kind(**_oneof(kind.DESCRIPTOR, "event")[0](event))


def decode_event(message: Message) -> Any:
    """The one event in a message; None for none, or one of a newer version."""
    return _oneof(message.DESCRIPTOR, "event")[1](message, None)


# -- how each field is converted --------------------------------------------------

Convert = Callable[[Any], Any]


class _Codec:
    """Turns values of one type into arguments for its message, and messages into values.

    Both functions are compiled from source, as `dataclasses` compiles `__init__`, because
    they run for each token.
    """

    def __init__(self, kind: type) -> None:
        known: dict[str, Any] = {"kind": kind}
        hints, message = get_type_hints(kind), MESSAGES[kind].DESCRIPTOR
        sources = [
            _sources(each.name, hints[each.name], each.default, message, known)
            for each in dataclasses.fields(kind)
            if each.name not in UNSENT.get(kind, ())
        ]
        to_message, from_message = (", ".join(each) for each in zip(*sources, strict=True))
        self.fields: Callable[[Any], Fields] = eval(f"lambda value: {{{to_message}}}", known)
        self.decode: Convert = eval(f"lambda message: kind({from_message})", known)


class _Codecs(dict[type, _Codec]):
    """One for each type, made at its first use."""

    def __missing__(self, kind: type) -> _Codec:
        self[kind] = _Codec(kind)
        return self[kind]


_CODECS = _Codecs()


def _sources(
    attribute: str, hint: Any, default: Any, message: Any, known: dict[str, Any]
) -> tuple[str, str]:
    """The source of one field's item in the dict, and of its argument for the value.

    `known` gets the functions and values that they name.
    """
    to_name, from_name, default_name = (f"{each}_{attribute}" for each in ("to", "of", "default"))
    if NoneType in get_args(hint):
        default = None if default is dataclasses.MISSING else default
        hint = next(each for each in get_args(hint) if each is not NoneType)
    value = f"value.{attribute}"
    known[default_name] = default
    if attribute in message.oneofs_by_name:
        known[to_name], known[from_name] = _oneof(message, attribute)
        return f"**{to_name}({value})", f"{attribute}={from_name}(message, {default_name})"
    names = message.fields_by_name
    field = names.get(attribute) or names[attribute.removesuffix("_s")]
    read = f"message.{field.name}"
    item = get_args(hint)[0] if field.is_repeated else hint
    converters = known[to_name], known[from_name] = _converters(field, item, default)
    if field.message_type and field.message_type.GetOptions().map_entry:
        read = f"dict({read})"
    elif field.is_repeated:
        read = f"tuple({read})"
        if any(converters):
            value = f"[{to_name}(each) for each in {value}]"
            read = f"tuple([{from_name}(each) for each in {read}])"
    elif any(converters):
        value = f"None if {value} is None else {to_name}({value})"
        read = f"{from_name}({read})"
    elif default is None:
        read = f"{read} or None" if not field.has_presence else read
    if field.has_presence and default is not dataclasses.MISSING:
        read = f"{read} if message.HasField({field.name!r}) else {default_name}"
    return f"{field.name!r}: {value}", f"{attribute}={read}"


def _converters(
    field: FieldDescriptor, hint: Any, default: Any
) -> tuple[Convert, Convert] | tuple[None, None]:
    """Converters of one item, to the message and back; None where both have the same."""
    if field.enum_type:
        return _enum(field.enum_type, hint, default)
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return None, None
    if field.message_type is Duration.DESCRIPTOR:
        return _duration, _seconds
    if field.message_type is inference_pb2.Content.DESCRIPTOR:
        to_content, of_content = _oneof(field.message_type, "content")
        return to_content, lambda message: of_content(message, "")
    return _CODECS[hint].fields, _CODECS[hint].decode


def _duration(seconds: float) -> Fields:
    whole, nanos = divmod(round(seconds * 1e9), 10**9)
    return {"seconds": whole, "nanos": nanos}


def _seconds(duration: Duration) -> float:
    return (duration.seconds * 10**9 + duration.nanos) / 1e9


# -- enums ------------------------------------------------------------------------

# What a number that is no option means; where there is nothing, it was only a hint.
_UNKNOWN: dict[Any, Callable[[int], Stream2LLMError]] = {
    DocumentOrdering: partial(bad_option, DocumentOrdering),
    ControlTokens: partial(bad_option, ControlTokens),
    OversizedDocuments: partial(bad_option, OversizedDocuments),
    events.DocumentAction: lambda number: InternalError(
        f"the server did something unknown, {number}, to a document that is too long: "
        "update the client"
    ),
    token_step.FinishReason: lambda number: InternalError(
        f"the server sent an unknown finish reason {number}: update the client"
        if number
        else "the server ended the answer without saying why"
    ),
}


def _enum(enum: EnumDescriptor, hint: Any, default: Any) -> tuple[Convert, Convert]:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
    options: Iterable[Any] = get_args(hint) or hint
    numbers = {each: enum.values_by_name[f"{prefix}_{each.upper()}"].number for each in options}
    back = {number: option for option, number in numbers.items()}
    if default is not dataclasses.MISSING:
        back[0] = default
    unknown = _UNKNOWN.get(hint)

    def option_of(number: int) -> Any:
        if number not in back and unknown is not None:
            raise unknown(number)
        return back.get(number)

    return numbers.__getitem__, option_of


# -- oneofs -----------------------------------------------------------------------


@cache
def _oneof(descriptor: Descriptor, name: str) -> tuple[Convert, Callable[[Any, Any], Any]]:
    """Turns a value into the one argument that sets a member of a oneof, and back.

    The value's type says which member: text, token ids, or a message of MESSAGES.
    """
    kinds = {message.DESCRIPTOR: kind for kind, message in MESSAGES.items()}
    members = {
        each.name: kinds[each.message_type]
        for each in descriptor.oneofs_by_name[name].fields
        if each.message_type in kinds
    }
    names = {kind: member for member, kind in members.items()}

    def encode_member(value: Any) -> Fields:
        if member := names.get(type(value)):
            return {member: fields(value)}
        if isinstance(value, str):
            return {"text": value}
        return {} if value is None else {"token_ids": {"ids": value}}

    def decode_member(message: Any, default: Any) -> Any:
        member = message.WhichOneof(name)
        if kind := members.get(member):
            return decode(kind, getattr(message, member))
        if member == "text":
            return message.text
        return default if member is None else list(message.token_ids.ids)

    return encode_member, decode_member
