"""One model's chat: a client's conversation becomes the text of a prompt. Pure.

A template that has another form for conversations with tools is used in that form for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from router.chat_template import ChatRenderer, TemplateText
from router.conversation import bad_chat, check_messages, tools_of, turns_of, variables_of
from router.template_probe import Abilities, Fate, abilities_of
from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.options import ControlTokens
from stream2llm.api.requests import DEFAULT_CONTEXT_SLOT, ChatMessage, ChatPrompt, ChatTemplate

_MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class ProbedTemplate:
    """A template, and what it does with the parts of a conversation."""

    renderer: ChatRenderer
    abilities: Abilities

    @classmethod
    def of(cls, renderer: ChatRenderer) -> ProbedTemplate:
        """Renders small conversations."""
        return cls(renderer, abilities_of(renderer))


class ModelChat:
    """Renders conversations. Thread-safe."""

    def __init__(self, plain: ProbedTemplate, with_tools: ProbedTemplate | None) -> None:
        """`with_tools` is for conversations with tools; None: there can be none."""
        self._plain = plain
        self._with_tools = with_tools

    def prompt(
        self, chat: ChatPrompt, control_tokens: ControlTokens = ControlTokens.NONE
    ) -> TemplateText:
        """Renders a conversation, by default up to the beginning of the model's answer.

        Raises InvalidRequestError or UnsupportedError, naming the field.
        """
        check_messages(chat)
        if not chat.continue_final_message:
            asked = chat.add_generation_prompt
            return self._render(chat, control_tokens, begins_answer=asked is None or asked)
        tag = _unused_marker(chat)
        marked = replace(chat, messages=(*chat.messages[:-1], _tagged(chat, tag)))
        return _cut_at(tag, self._render(marked, control_tokens, begins_answer=False))

    def around_context(
        self, chat: ChatTemplate, control_tokens: ControlTokens = ControlTokens.NONE
    ) -> tuple[TemplateText, TemplateText]:
        """Renders a conversation, and splits it at the one context slot."""
        check_messages(chat)
        slot = chat.context_slot or DEFAULT_CONTEXT_SLOT
        _check_one_slot(chat, slot)
        marker = _unused_marker(chat)
        messages = [_replaced(message, slot, marker) for message in chat.messages]
        rendered = self.prompt(replace(chat, messages=tuple(messages)), control_tokens)
        parts = rendered.split(marker)
        if len(parts) != 2:
            raise bad_chat(
                f"the model's chat template shows the context slot {len(parts) - 1} times, not once",
                "chat.messages",
            )
        return parts[0], parts[1]

    def _render(
        self, chat: ChatPrompt, control_tokens: ControlTokens, *, begins_answer: bool
    ) -> TemplateText:
        tools = tools_of(chat)
        template = self._with_tools if tools else self._plain
        if template is None:
            raise _without("tools that the router can use (its log says why)", "chat.tools")
        _check_fates(chat, template.abilities)
        turns = turns_of(chat.messages, template.abilities.form, control_tokens)
        variables = variables_of(chat, template.renderer.reserved_names)
        try:
            return template.renderer.render(
                turns, tools=tools, variables=variables, add_generation_prompt=begins_answer
            )
        except Exception as error:  # templates may raise anything
            raise _refusal(chat, template.abilities, error) from error


def _check_fates(chat: ChatPrompt, abilities: Abilities) -> None:
    """Raises for what the template would leave out without a word."""
    if chat.tools and abilities.tools is Fate.LEFT_OUT:
        raise _without("tools", "chat.tools")
    for index, message in enumerate(chat.messages):
        field = f"chat.messages[{index}]"
        if message.tool_calls and abilities.tool_calls is Fate.LEFT_OUT:
            raise _without("calls of tools", f"{field}.tool_calls")
        if message.role == "tool" and abilities.roles["tool"] is Fate.LEFT_OUT:
            raise _without("messages of the role 'tool'", f"{field}.role")


def _without(what: str, field: str) -> UnsupportedError:
    return UnsupportedError(
        f"{field}: the model's chat template has no {what}", reason="NOT_IN_TEMPLATE", field=field
    )


def _refusal(chat: ChatPrompt, abilities: Abilities, error: Exception) -> InvalidRequestError:
    """Names the first message of a role that the template refuses, if there is one."""
    # A template may put all that it was given into its error.
    message = f"the model's chat template refuses the messages: {str(error)[:_MAX_ERROR_CHARS]}"
    for index, each in enumerate(chat.messages):
        if abilities.roles[each.role] is Fate.REFUSED:
            field = f"chat.messages[{index}].role"
            return bad_chat(f"{message} ({field} is {each.role!r})", field)
    return bad_chat(message, "chat.messages")


# -- markers -----------------------------------------------------------------------


def _check_one_slot(chat: ChatTemplate, slot: str) -> None:
    count = sum(text.count(slot) for message in chat.messages for text in message.texts)
    if count != 1:
        raise bad_chat(
            f"the context slot {slot!r} appears {count} times in chat.messages;"
            " it must appear exactly once",
            "chat.messages",
        )


def _unused_marker(chat: ChatPrompt) -> str:
    # Letters and digits survive every filter that a template may apply.
    given = repr(chat)
    number = 0
    while f"s2lslot{number}x" in given:
        number += 1
    return f"s2lslot{number}x"


def _replaced(message: ChatMessage, old: str, new: str) -> ChatMessage:
    parts = tuple(replace(part, text=part.text.replace(old, new)) for part in message.parts)
    return replace(message, content=message.content.replace(old, new), parts=parts)


def _tagged(chat: ChatPrompt, tag: str) -> ChatMessage:
    """Returns the last message with the tag, and a space that shows trimming, at its end."""
    last = chat.messages[-1]
    end = f"{tag} "
    if last.content:
        return replace(last, content=last.content + end)
    if last.parts:
        *before, part = last.parts
        return replace(last, parts=(*before, replace(part, text=part.text + end)))
    field = f"chat.messages[{len(chat.messages) - 1}].content"
    raise bad_chat(f"{field} is empty: there is nothing to continue", field)


def _cut_at(tag: str, rendered: TemplateText) -> TemplateText:
    """Returns what is before the tag; without white space at its end if the template trims it."""
    at = rendered.rfind(tag)
    if at < 0:
        raise bad_chat(
            "the model's chat template leaves out the content of the last message, which is to"
            " be continued",
            "chat.continue_final_message",
        )
    is_trimmed = not rendered.startswith(f"{tag} ", at)
    return rendered[:at].rstrip() if is_trimmed else rendered[:at]
