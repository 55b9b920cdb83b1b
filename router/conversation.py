"""A client's conversation, checked, in the form that a chat template takes. Pure.

All of it is data, names, tools and arguments included. Only contents may write control
tokens, where the client asks for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from router.chat_template import TemplateText
from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.json_text import json_object
from stream2llm.api.options import ControlTokens
from stream2llm.api.requests import ChatMessage, ChatPrompt, ToolCall

# A message, or a tool, as templates know it.
Turn = dict[str, Any]
Tool = dict[str, Any]

CHAT_ROLES = ("system", "user", "assistant", "tool", "developer")
MAX_TOOLS = 128
MAX_TOOL_CALLS = 128
# The roles that may have a field; others have none of these.
_ONLY_IN = {"tool_calls": "assistant", "reasoning": "assistant", "tool_call_id": "tool"}


@dataclass(frozen=True, slots=True)
class ContentForm:
    """The forms of messages that a template takes."""

    # As text, or as a list of parts; one of the two at least.
    takes_text: bool = True
    takes_parts: bool = False
    # Whether there are messages of developers; else they are system messages.
    knows_developer: bool = False


def num_chars(chat: ChatPrompt) -> int:
    """Returns about how many characters rendering and tokenizing will see."""
    said = sum(len(text) for message in chat.messages for text in message.texts)
    calls = sum(len(each.arguments) for message in chat.messages for each in message.tool_calls)
    thought = sum(len(message.reasoning) for message in chat.messages)
    return said + calls + thought + sum(map(len, chat.tools)) + len(chat.chat_template_kwargs)


def check_messages(chat: ChatPrompt) -> None:
    """Raises InvalidRequestError, or UnsupportedError, for what no template can take."""
    if not chat.messages:
        raise bad_chat("chat.messages is empty", "chat.messages")
    for index, message in enumerate(chat.messages):
        _check_message(message, f"chat.messages[{index}]")
    if chat.continue_final_message and chat.add_generation_prompt:
        raise bad_chat(
            "chat.add_generation_prompt excludes chat.continue_final_message",
            "chat.add_generation_prompt",
        )


def turns_of(
    messages: Sequence[ChatMessage], form: ContentForm, control_tokens: ControlTokens
) -> list[Turn]:
    """Returns the messages as the template takes them."""
    return [
        _turn(message, f"chat.messages[{index}]", form, control_tokens)
        for index, message in enumerate(messages)
    ]


def tools_of(chat: ChatPrompt) -> list[Tool] | None:
    """Returns the tools; None for none, as templates ask."""
    if len(chat.tools) > MAX_TOOLS:
        raise bad_chat(
            f"chat.tools has {len(chat.tools)} tools; at most {MAX_TOOLS} are allowed", "chat.tools"
        )
    tools = [json_object(text, f"chat.tools[{index}]") for index, text in enumerate(chat.tools)]
    return tools or None


def variables_of(chat: ChatPrompt, reserved: Set[str]) -> Mapping[str, Any]:
    """Returns the client's variables for the template; raises for `reserved` names."""
    field = "chat.chat_template_kwargs"
    if not chat.chat_template_kwargs:
        return {}
    variables = json_object(chat.chat_template_kwargs, field)
    for name in variables:
        if name in reserved:
            raise bad_chat(f"{field} cannot set {name!r}", field)
    return variables


def bad_chat(message: str, field: str) -> InvalidRequestError:
    """The error for a conversation that this model, or any, cannot take."""
    return InvalidRequestError(message, reason="BAD_CHAT", field=field)


def _check_message(message: ChatMessage, field: str) -> None:
    if message.role not in CHAT_ROLES:
        roles = ", ".join(CHAT_ROLES)
        role = f"{field}.role"
        raise bad_chat(f"{role} is {message.role!r}; it must be one of {roles}", role)
    for name, role in _ONLY_IN.items():
        if getattr(message, name) and message.role != role:
            raise bad_chat(
                f"{field}.{name} is for messages of the role {role!r}; {field}.role is"
                f" {message.role!r}",
                f"{field}.{name}",
            )
    if message.parts and message.content:
        raise bad_chat(f"{field}.parts excludes {field}.content", f"{field}.parts")
    for index, part in enumerate(message.parts):
        if part.type != "text":
            raise UnsupportedError(
                f"{field}.parts[{index}].type is {part.type!r}; only text parts are supported",
                field=f"{field}.parts[{index}].type",
            )
    if len(message.tool_calls) > MAX_TOOL_CALLS:
        raise bad_chat(
            f"{field}.tool_calls has {len(message.tool_calls)} calls; at most {MAX_TOOL_CALLS}"
            " are allowed",
            f"{field}.tool_calls",
        )


def _turn(
    message: ChatMessage, field: str, form: ContentForm, control_tokens: ControlTokens
) -> Turn:
    is_system = message.role == "developer" and not form.knows_developer
    turn: Turn = {"role": "system" if is_system else message.role}
    turn["content"] = _content(message, form, control_tokens)
    if message.tool_calls:
        turn["tool_calls"] = [
            _call(call, f"{field}.tool_calls[{index}]")
            for index, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.name:
        turn["name"] = message.name
    if message.reasoning:  # templates know it by either name
        turn["reasoning"] = turn["reasoning_content"] = message.reasoning
    return turn


def _content(
    message: ChatMessage, form: ContentForm, control_tokens: ControlTokens
) -> str | list[dict[str, str]]:
    # What a tool returns is no less foreign than a document.
    is_written = control_tokens is ControlTokens.ALL or (
        control_tokens is ControlTokens.TEMPLATE and message.role != "tool"
    )
    texts = [TemplateText.written(each) if is_written else each for each in message.texts if each]
    in_parts = form.takes_parts if message.parts else not form.takes_text
    if in_parts:
        return [{"type": "text", "text": text} for text in texts]
    return TemplateText("").join(texts) if is_written else "".join(texts)


def _call(call: ToolCall, field: str) -> dict[str, Any]:
    called = {"name": call.name, "arguments": {}}
    if call.arguments:
        called["arguments"] = json_object(call.arguments, f"{field}.arguments")
    turn: dict[str, Any] = {"type": "function", "function": called}
    return {"id": call.id, **turn} if call.id else turn
