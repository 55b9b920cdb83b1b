"""What a chat template makes of a conversation, found by rendering small ones. Pure.

A template may leave out what it does not know, without a word: tools, calls, results. What
would be lost is refused instead. A template that raises is asked again with the client's
own conversation, since it may want more than these small ones have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from router.chat_template import ChatRenderer
from router.conversation import ContentForm, Tool, turns_of
from stream2llm.api.options import ControlTokens
from stream2llm.api.requests import ChatMessage, ToolCall

# Nine letters and digits: templates that check ids of calls want that.
_PROBE, _OTHER_PROBE, _CALL_ID = "s2lprobe1", "s2lprobe2", "s2lcall01"
_DEVELOPER = re.compile("['\"]developer['\"]")

TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "text",
        "parameters": {
            "type": "object",
            "properties": {"key": {"type": "string", "description": "text"}},
            "required": ["key"],
        },
    },
}
_USER = ChatMessage("user", "text")


def _called(value: str) -> ChatMessage:
    arguments = json.dumps({"key": value})
    return ChatMessage("assistant", tool_calls=(ToolCall("look_up", arguments, _CALL_ID),))


def _result(text: str) -> ChatMessage:
    return ChatMessage("tool", text, tool_call_id=_CALL_ID, name="look_up")


_Messages = tuple[ChatMessage, ...]
PLAIN_CONVERSATION: _Messages = (_USER, ChatMessage("assistant", "text"), _USER)
# Has a call and its result.
TOOL_CONVERSATION: _Messages = (_USER, _called("text"), _result("text"))
_WITH_ROLE: dict[str, _Messages] = {
    "system": (ChatMessage("system", _PROBE), _USER),
    "user": (ChatMessage("user", _PROBE),),
    "assistant": (_USER, ChatMessage("assistant", _PROBE), _USER),
    "tool": (_USER, _called("text"), _result(_PROBE)),
    "developer": (ChatMessage("developer", _PROBE), _USER),
}


class Fate(Enum):
    """What a template does with a text."""

    WRITTEN = auto()
    LEFT_OUT = auto()
    # It raises.
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Abilities:
    """What one template does with the parts of a conversation."""

    form: ContentForm
    roles: Mapping[str, Fate]
    tools: Fate
    tool_calls: Fate


def abilities_of(renderer: ChatRenderer) -> Abilities:
    """Renders small conversations."""
    form = _content_form(renderer)
    tool: Tool = {**TOOL, "function": {**TOOL["function"], "name": _PROBE}}
    return Abilities(
        form,
        {role: _fate(renderer, form, messages) for role, messages in _WITH_ROLE.items()},
        tools=_fate(renderer, form, (_USER,), [tool]),
        tool_calls=_fate(renderer, form, (_USER, _called(_PROBE), _result("text")), [TOOL]),
    )


def _fate(
    renderer: ChatRenderer, form: ContentForm, messages: _Messages, tools: list[Tool] | None = None
) -> Fate:
    try:
        text = renderer.render(turns_of(messages, form, ControlTokens.NONE), tools=tools)
    except Exception:  # templates may raise anything
        return Fate.REFUSED
    return Fate.WRITTEN if _PROBE in text else Fate.LEFT_OUT


def _content_form(renderer: ChatRenderer) -> ContentForm:
    takes_parts = _takes_parts(renderer)
    takes_text = _fate(renderer, ContentForm(), _WITH_ROLE["user"]) is Fate.WRITTEN
    return ContentForm(
        takes_text=takes_text or not takes_parts,
        takes_parts=takes_parts,
        knows_developer=bool(_DEVELOPER.search(renderer.source)),
    )


def _takes_parts(renderer: ChatRenderer) -> bool:
    """Whether it writes the texts of parts, and not the list that they are in."""
    parts = [{"type": "text", "text": text} for text in (_PROBE, _OTHER_PROBE)]
    try:
        text = renderer.render([{"role": "user", "content": parts}])
    except Exception:  # templates may raise anything
        return False
    has_texts = _PROBE in text and _OTHER_PROBE in text
    return has_texts and re.search("['\"]type['\"]", text) is None
