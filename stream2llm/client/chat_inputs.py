"""Chat messages and tools that a caller hands in, as values of `api/requests.py`. Pure.

Messages may be values, dictionaries as OpenAI's interface has them, or the messages that
its SDK returns. Every argument gets its plain form, or is refused by the name of its field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from stream2llm.api import arguments
from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.json_text import json_text
from stream2llm.api.requests import ChatContentPart, ChatMessage, ToolCall

T = TypeVar("T")


class SdkMessage(Protocol):
    """A message as OpenAI's SDK returns it."""

    def model_dump(self) -> dict[str, Any]: ...


MessageLike = ChatMessage | Mapping[str, Any] | SdkMessage
# A JSON object, as a dictionary or as text.
JsonObject = Mapping[str, Any] | str

_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"}


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What goes with the messages of a conversation; see `AsyncClient.session`."""

    tools: Sequence[JsonObject] | None = None
    chat_template_kwargs: JsonObject | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None

    def fields(self) -> dict[str, Any]:
        """Returns the fields of a ChatPrompt beside its messages."""
        variables = self.chat_template_kwargs
        return {
            "tools": _tools(self.tools),
            "chat_template_kwargs": ""
            if variables is None
            else _json_object(variables, "chat.chat_template_kwargs"),
            "continue_final_message": self.continue_final_message,
            "add_generation_prompt": self.add_generation_prompt,
        }

    def check_unused(self, field: str) -> None:
        """Raises InvalidRequestError if there is any of it, for a prompt that is no chat."""
        if self != ChatOptions():
            raise InvalidRequestError(
                "tools, chat_template_kwargs, continue_final_message and add_generation_prompt"
                " need chat messages",
                field=field,
            )


def chat_messages(messages: Iterable[MessageLike]) -> tuple[ChatMessage, ...]:
    """Returns messages as values; a bare one is a list of one."""
    field = "chat.messages"
    items = arguments.many(messages, field, "a list of chat messages", ChatMessage, Mapping)
    return tuple(_chat_message(message, f"{field}[{index}]") for index, message in enumerate(items))


def is_message(item: object) -> bool:
    """Whether it is a chat message in one of its forms."""
    return isinstance(item, Mapping | ChatMessage) or hasattr(item, "model_dump")


def _chat_message(message: MessageLike, field: str) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return _checked(message, field)
    given = _set_items(message, field, "a chat message", _KEYS)
    # Texts are checked where the protobuf message is made.
    made = ChatMessage(
        given.get("role"),  # type: ignore[arg-type]
        tool_calls=_tool_calls(given.get("tool_calls", ()), f"{field}.tool_calls"),
        tool_call_id=given.get("tool_call_id", ""),
        name=given.get("name", ""),
        reasoning=given.get("reasoning", given.get("reasoning_content", "")),
    )
    says_more = made.tool_calls or made.reasoning
    content = given.get("content", "" if says_more else None)
    return _with_content(made, content, f"{field}.content")


def _checked(message: ChatMessage, field: str) -> ChatMessage:
    """Returns a value whose lists hold values; their items may be dictionaries."""
    parts = arguments.many(message.parts, f"{field}.parts", "a list of text parts", Mapping)
    made = replace(
        message,
        parts=_each(parts, f"{field}.parts", _part),
        tool_calls=_tool_calls(message.tool_calls, f"{field}.tool_calls"),
    )
    return made if parts else _with_content(made, message.content, f"{field}.content")


def _with_content(message: ChatMessage, content: object, field: str) -> ChatMessage:
    """Sets a text, or text parts; one part alone is a text."""
    if isinstance(content, str):
        return replace(message, content=content)
    if not isinstance(content, list | tuple):
        raise arguments.refused(field, content, "text or a list of text parts")
    parts = _each(content, field, _part)
    if len(parts) > 1:
        return replace(message, content="", parts=parts)
    return replace(message, content="".join(part.text for part in parts))


def _part(part: object, field: str) -> ChatContentPart:
    if isinstance(part, ChatContentPart):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise arguments.refused(field, part, '{"type": "text", "text": ...}')
    if kind != "text":
        raise UnsupportedError(
            f"{field} is a part of type {arguments.shown(kind)}; only text parts are supported",
            field=field,
        )
    if set(part) != {"type", "text"}:
        raise arguments.refused(field, part, "a part with the keys type and text alone")
    return ChatContentPart(arguments.text(part["text"], f"{field}.text"))


def _tool_calls(calls: Any, field: str) -> tuple[ToolCall, ...]:
    items = arguments.many(calls, field, "a list of calls of tools", Mapping, ToolCall)
    return _each(items, field, _tool_call)


def _tool_call(call: object, field: str) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    call = _dumped(call)
    kind = call.get("type") if isinstance(call, Mapping) else None
    if kind not in (None, "function"):
        raise UnsupportedError(
            f"{field} is a call of type {arguments.shown(kind)}; only function calls are supported",
            field=f"{field}.type",
        )
    given = _set_items(call, field, "a call of a tool", {"id", "type", "function"})
    name = f"{field}.function"
    function = _set_items(given.get("function"), name, "a function", {"name", "arguments"})
    called = function.get("arguments", "")
    if isinstance(called, Mapping):
        called = json_text(called, f"{name}.arguments")
    return ToolCall(
        arguments.text(function.get("name"), f"{name}.name"),
        arguments.text(called, f"{name}.arguments"),
        arguments.text(given.get("id", ""), f"{field}.id"),
    )


def _tools(tools: Sequence[JsonObject] | None) -> tuple[str, ...]:
    if tools is None:
        return ()
    items = arguments.many(tools, "chat.tools", "a list of tools", Mapping)
    return _each(items, "chat.tools", _json_object)


def _json_object(value: object, field: str) -> str:
    """Returns the text of an object; the server parses it."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise arguments.refused(field, value, "a dictionary, or the text of a JSON object")
    return json_text(dict(value), field)


def _each(items: Iterable[Any], field: str, convert: Callable[[Any, str], T]) -> tuple[T, ...]:
    return tuple(convert(item, f"{field}[{index}]") for index, item in enumerate(items))


def _set_items(value: Any, field: str, what: str, known: set[str]) -> dict[str, Any]:
    """Returns a dictionary's items, or those of a model of the SDK, without what is not set."""
    given = _dumped(value)
    if not isinstance(given, Mapping):
        raise arguments.refused(field, value, what)
    found = {key: item for key, item in given.items() if item is not None}
    for key, item in found.items():
        if key not in known and item != []:  # the SDK's messages have empty annotations
            raise InvalidRequestError(
                f"{field} has the key {arguments.shown(key)}; {what} may have"
                f" {', '.join(sorted(known))}",
                field=field,
            )
    return found


def _dumped(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump() if callable(dump) else value
