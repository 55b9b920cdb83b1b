"""Conversations that a model's chat template takes, and those that are refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from router.chat_template import ChatRenderer
from router.conversation import MAX_TOOL_CALLS, MAX_TOOLS, turns_of
from router.model_chat import ModelChat, ProbedTemplate
from router.template_probe import Fate
from stream2llm.api.errors import InvalidRequestError, Stream2LLMError, UnsupportedError
from stream2llm.api.json_text import MAX_JSON_BYTES, MAX_JSON_DEPTH
from stream2llm.api.options import ControlTokens
from stream2llm.api.requests import ChatContentPart, ChatMessage, ChatPrompt, ChatTemplate, ToolCall
from tests.chat_templates import HARMONY, HERMES, LLAMA, MISTRAL, PARTS, TEMPLATES, tool

CHATML = (
    "{% for m in messages %}{{ '<|turn|>' + m.role + '\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif %}"
)
USER = ChatMessage("user", "Hi")
CALL = ToolCall("look_up", '{"key": "x"}', "abcdefghi")
CALLED = ChatMessage("assistant", tool_calls=(CALL,))
RESULT = ChatMessage("tool", "found", tool_call_id="abcdefghi", name="look_up")
TOOLS = (json.dumps(tool("")),)


def a_chat(template: str) -> ModelChat:
    probed = ProbedTemplate.of(ChatRenderer(template, {"bos_token": "<s>"}))
    return ModelChat(probed, probed)


def refused(template: str, prompt: ChatPrompt) -> Stream2LLMError:
    with pytest.raises(Stream2LLMError) as caught:
        a_chat(template).prompt(prompt)
    return caught.value


# -- what templates know -----------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_templates_of_known_models_write_is_found(name: str) -> None:
    abilities = a_chat(TEMPLATES[name])._plain.abilities
    assert (abilities.tools, abilities.tool_calls) == (Fate.WRITTEN, Fate.WRITTEN)
    for role in ("system", "user", "assistant", "tool"):
        assert abilities.roles[role] is Fate.WRITTEN, role
    assert abilities.form.takes_text == (name != "parts")
    assert abilities.form.takes_parts == (name == "parts")


def test_what_a_template_would_leave_out_is_refused() -> None:
    error = refused(CHATML, ChatPrompt((USER,), tools=TOOLS))
    assert (type(error), error.reason, error.field) == (
        UnsupportedError,
        "NOT_IN_TEMPLATE",
        "chat.tools",
    )
    error = refused(CHATML, ChatPrompt((USER, CALLED, RESULT)))
    assert (error.reason, error.field) == ("NOT_IN_TEMPLATE", "chat.messages[1].tool_calls")
    only_users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    error = refused(only_users, ChatPrompt((USER, RESULT)))
    assert (error.reason, error.field) == ("NOT_IN_TEMPLATE", "chat.messages[1].role")


def test_a_role_that_a_template_refuses_is_named() -> None:
    no_system = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system!') }}{% endif %}"
    )
    messages = (USER, ChatMessage("system", "Be nice."))
    error = refused(MISTRAL, ChatPrompt(messages))
    assert error.field == "chat.messages"  # it takes one at the beginning
    error = refused(no_system + CHATML, ChatPrompt(messages[::-1]))
    assert (error.reason, error.field) == ("BAD_CHAT", "chat.messages[0].role")
    assert "no system! (chat.messages[0].role is 'system')" in error.message


def test_an_error_does_not_repeat_a_long_conversation() -> None:
    raises = "{% if messages[0].content | length > 9 %}{{ raise_exception(messages[0].content) }}{% endif %}"
    error = refused(raises + CHATML, ChatPrompt((ChatMessage("user", "x" * 10_000),)))
    assert len(error.message) < 1_000


def test_a_developer_is_a_system_message_where_the_template_knows_none() -> None:
    prompt = ChatPrompt((ChatMessage("developer", "Be nice."), USER))
    assert "<|turn|>system\nBe nice." in a_chat(CHATML).prompt(prompt)
    assert "<|turn|>developer\nBe nice." in a_chat(HARMONY).prompt(prompt)


def test_a_model_whose_tools_cannot_be_used_has_a_chat_without() -> None:
    plain = a_chat(CHATML)._plain
    chat = ModelChat(plain, None)
    assert chat.prompt(ChatPrompt((USER,))).startswith("<|turn|>user")
    with pytest.raises(UnsupportedError, match="no tools that the router can use"):
        chat.prompt(ChatPrompt((USER,), tools=TOOLS))


def test_conversations_with_tools_have_the_template_for_them() -> None:
    chat = ModelChat(a_chat(CHATML)._plain, a_chat(HERMES)._plain)
    assert "<tools>" not in chat.prompt(ChatPrompt((USER,)))
    assert "<tools>" in chat.prompt(ChatPrompt((USER,), tools=TOOLS))


# -- the form of messages ----------------------------------------------------------


def test_a_template_gets_messages_as_transformers_hands_them_over() -> None:
    thought = replace(CALLED, reasoning="hm")
    form = a_chat(CHATML)._plain.abilities.form
    function = {"name": "look_up", "arguments": {"key": "x"}}
    call = {"id": "abcdefghi", "type": "function", "function": function}
    assert turns_of((USER, thought, RESULT), form, ControlTokens.NONE) == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call],
            "reasoning": "hm",
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "found", "tool_call_id": "abcdefghi", "name": "look_up"},
    ]


def test_parts_are_one_text_unless_the_template_takes_parts() -> None:
    prompt = ChatPrompt((ChatMessage("user", parts=(ChatContentPart("a"), ChatContentPart("b"))),))
    assert "user\nab<|end|>" in a_chat(CHATML).prompt(prompt)
    assert "user\na\nb\n<|end|>" in a_chat(PARTS).prompt(prompt)
    assert "user\nHi\n<|end|>" in a_chat(PARTS).prompt(ChatPrompt((USER,)))


def test_variables_reach_the_template() -> None:
    chat = a_chat(HERMES)
    thinking = ChatPrompt((USER,), chat_template_kwargs='{"enable_thinking": true, "other": [1]}')
    assert chat.prompt(thinking) == chat.prompt(ChatPrompt((USER,)))
    silent = replace(thinking, chat_template_kwargs='{"enable_thinking": false}')
    assert chat.prompt(silent) == chat.prompt(thinking) + "<think>\n\n</think>\n\n"


def test_the_beginning_of_the_answer_may_be_left_out() -> None:
    prompt = ChatPrompt((USER,), add_generation_prompt=False)
    assert a_chat(CHATML).prompt(prompt) == "<|turn|>user\nHi<|end|>\n"


# -- continuing the last message ---------------------------------------------------


@pytest.mark.parametrize("content", ["It is", "It is ", " It\n", "s2lslot0x"])
@pytest.mark.parametrize("template", [HERMES, LLAMA, MISTRAL, HARMONY, CHATML])
def test_an_answer_continues_the_last_message_as_with_transformers(
    template: str, content: str
) -> None:
    messages = (USER, ChatMessage("assistant", content))
    prompt = ChatPrompt(messages, continue_final_message=True)
    (theirs,), _ = render_jinja_template(
        [[{"role": each.role, "content": each.content} for each in messages]],
        chat_template=template,
        continue_final_message=True,
        bos_token="<s>",
    )
    assert a_chat(template).prompt(prompt) == theirs


def test_an_answer_continues_what_the_template_keeps_of_the_last_message() -> None:
    messages = (USER, ChatMessage("assistant", "thought</think>It is "))
    prompt = ChatPrompt(messages, continue_final_message=True)
    assert a_chat(HERMES).prompt(prompt).endswith("assistant\nIt is ")
    keeps_nothing = "{% for m in messages %}{{ m.role }}{% endfor %}{{ messages[0].content }}"
    error = refused(keeps_nothing, prompt)
    assert (error.reason, error.field) == ("BAD_CHAT", "chat.continue_final_message")


def test_an_answer_continues_the_last_part() -> None:
    last = ChatMessage("assistant", parts=(ChatContentPart("a"), ChatContentPart("b ")))
    prompt = ChatPrompt((USER, last), continue_final_message=True)
    assert a_chat(PARTS).prompt(prompt).endswith("assistant\na\nb ")
    assert a_chat(CHATML).prompt(prompt).endswith("assistant\nab ")


def test_the_slot_may_be_in_the_message_that_is_continued() -> None:
    messages = (USER, ChatMessage("assistant", "From {{context}} "))
    left, right = a_chat(CHATML).around_context(ChatTemplate(messages, continue_final_message=True))
    assert (left[-5:], right) == ("From ", " ")


# -- the context slot --------------------------------------------------------------


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("template", [HERMES, LLAMA, MISTRAL, HARMONY, PARTS])
def test_the_slot_may_be_in_a_message_of_any_role(template: str, role: str) -> None:
    said = ChatMessage("assistant", "It is.")
    messages = [ChatMessage("system", "Be nice."), USER, CALLED, RESULT, said, USER]
    at = next(i for i, each in enumerate(messages) if each.role == role and each.content)
    for changed in (
        replace(messages[at], content="[{{context}}]"),
        replace(
            messages[at], content="", parts=(ChatContentPart("["), ChatContentPart("{{context}}]"))
        ),
    ):
        chat = ChatTemplate((*messages[:at], changed, *messages[at + 1 :]), tools=TOOLS)
        left, right = a_chat(template).around_context(chat)
        assert left.rstrip("\n")[-1] == "["
        assert right[0] == "]"


def test_a_slot_in_what_is_no_content_is_text() -> None:
    tools = (json.dumps(tool("{{context}}")),)
    chat = ChatTemplate((ChatMessage("user", "<{{context}}>"),), tools=tools)
    left, right = a_chat(HERMES).around_context(chat)
    assert "{{context}}tool_name" in left
    assert right[0] == ">"


# -- what is refused by name -------------------------------------------------------

DEEP = "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH


def called(arguments: str) -> dict[str, Any]:
    return {
        "messages": (USER, replace(CALLED, tool_calls=(CALL, replace(CALL, arguments=arguments))))
    }


@pytest.mark.parametrize(
    ("given", "reason", "field", "message"),
    [
        ({"messages": ()}, "BAD_CHAT", "chat.messages", "is empty"),
        ({"messages": (ChatMessage("bot", "x"),)}, "BAD_CHAT", "chat.messages[0].role", "tool, developer"),
        ({"messages": (replace(USER, tool_calls=(CALL,)),)}, "BAD_CHAT", "chat.messages[0].tool_calls", "'assistant'"),
        ({"messages": (replace(USER, reasoning="x"),)}, "BAD_CHAT", "chat.messages[0].reasoning", "'assistant'"),
        ({"messages": (USER, replace(CALLED, tool_call_id="x"))}, "BAD_CHAT", "chat.messages[1].tool_call_id", "'tool'"),
        ({"messages": (replace(USER, parts=(ChatContentPart("x"),)),)}, "BAD_CHAT", "chat.messages[0].parts", "excludes"),
        ({"messages": (ChatMessage("user", parts=(ChatContentPart("", "image_url"),)),)}, "UNSUPPORTED", "chat.messages[0].parts[0].type", "'image_url'"),
        ({"messages": (replace(CALLED, tool_calls=(CALL,) * (MAX_TOOL_CALLS + 1)),)}, "BAD_CHAT", "chat.messages[0].tool_calls", "at most 128"),
        ({"tools": TOOLS * (MAX_TOOLS + 1)}, "BAD_CHAT", "chat.tools", "at most 128"),
        ({"tools": ("{}", "{")}, "BAD_JSON", "chat.tools[1]", "is not JSON"),
        ({"tools": ("[]",)}, "BAD_JSON", "chat.tools[0]", "must be a JSON object"),
        ({"tools": ('{"a": NaN}',)}, "BAD_JSON", "chat.tools[0]", "NaN"),
        ({"tools": (f'{{"a": "{"x" * MAX_JSON_BYTES}"}}',)}, "BAD_JSON", "chat.tools[0]", "at most 262144"),
        ({"tools": (f'{{"a": {DEEP}}}',)}, "BAD_JSON", "chat.tools[0]", "deeper than 64"),
        ({"tools": ("[" * 100_000,)}, "BAD_JSON", "chat.tools[0]", "deeper than 64"),
        ({"tools": ('{"a": ' + "1" * 5000 + "}",)}, "BAD_JSON", "chat.tools[0]", "digits"),
        ({"tools": ('{"\\ud800": 1}',)}, "NOT_ENCODABLE", "chat.tools[0]", "U+D800"),
        (called("x"), "BAD_JSON", "chat.messages[1].tool_calls[1].arguments", "is not JSON"),
        (called("5"), "BAD_JSON", "chat.messages[1].tool_calls[1].arguments", "is 5 (int)"),
        ({"chat_template_kwargs": '{"a": "\\udfff"}'}, "NOT_ENCODABLE", "chat.chat_template_kwargs", "U+DFFF"),
        ({"chat_template_kwargs": "true"}, "BAD_JSON", "chat.chat_template_kwargs", "must be a JSON object"),
        *(
            ({"chat_template_kwargs": json.dumps({name: "x"})}, "BAD_CHAT", "chat.chat_template_kwargs", repr(name))
            for name in ("messages", "tools", "bos_token", "raise_exception", "strftime_now", "range", "add_generation_prompt", "tokenize")
        ),
        ({"continue_final_message": True, "add_generation_prompt": True}, "BAD_CHAT", "chat.add_generation_prompt", "excludes"),
        ({"messages": (USER, CALLED), "continue_final_message": True}, "BAD_CHAT", "chat.messages[1].content", "nothing to continue"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_no_template_takes_is_refused_by_name(
    given: dict[str, Any], reason: str, field: str, message: str
) -> None:
    error = refused(HERMES, ChatPrompt(**{"messages": (USER,), **given}))
    assert (error.reason, error.field) == (reason, field)
    assert message in error.message
    assert isinstance(error, InvalidRequestError | UnsupportedError)


def test_what_is_within_the_limits_is_taken() -> None:
    deep = "[" * (MAX_JSON_DEPTH - 1) + "]" * (MAX_JSON_DEPTH - 1)
    tools = (f'{{"a": {deep}}}', *TOOLS * (MAX_TOOLS - 1))
    prompt = ChatPrompt((USER, replace(CALLED, tool_calls=(CALL,) * MAX_TOOL_CALLS)), tools=tools)
    assert a_chat(HERMES).prompt(prompt).count('"name": "look_up"') == MAX_TOOL_CALLS


def test_variables_named_as_a_programs_own_names_do_no_harm() -> None:
    variables = json.dumps(dict.fromkeys(("self", "context", "environment", "a b", ""), "x"))
    prompt = ChatPrompt((USER,), chat_template_kwargs=variables)
    assert a_chat(CHATML).prompt(prompt) == a_chat(CHATML).prompt(ChatPrompt((USER,)))
