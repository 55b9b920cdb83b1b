"""Chat messages, tools and what goes with them, as a caller hands them in."""

from __future__ import annotations

import json

import pytest
from openai.types.chat import ChatCompletionMessage

from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client import ChatContentPart, ChatMessage, ToolCall
from stream2llm.client.chat_inputs import chat_messages
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("no_test_hangs")

SLOT = "{{context}}"
TEXT = {"type": "text", "text": "x"}
CHAT = [{"role": "user", "content": SLOT}]


def test_text_parts_are_kept_apart_and_one_alone_is_a_text():
    parts = [{"type": "text", "text": SLOT}, {"type": "text", "text": "\nWhy?"}]
    expected = (ChatContentPart(SLOT), ChatContentPart("\nWhy?"))
    for form in ({"role": "user", "content": parts}, ChatMessage("user", parts)):
        assert chat_messages([form])[0] == ChatMessage("user", parts=expected)
    assert chat_messages([{"role": "user", "content": parts[:1]}])[0] == ChatMessage("user", SLOT)
    assert chat_messages([{"role": "user", "content": []}])[0] == ChatMessage("user", "")


def test_messages_are_taken_as_the_sdk_makes_them():
    function = {"name": "look_up", "arguments": '{"key": "x"}'}
    message = {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    completion = ChatCompletionMessage.model_validate(message)
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "found"}]}
    expected = (
        ChatMessage("assistant", tool_calls=(ToolCall("look_up", '{"key": "x"}', "1"),)),
        ChatMessage("tool", "found", tool_call_id="1"),
    )
    assert chat_messages([completion, result]) == expected
    assert chat_messages([completion.model_dump(), result]) == expected
    assert chat_messages([message, result]) == expected


def test_reasoning_has_two_names_and_arguments_two_forms():
    call = {"function": {"name": "f", "arguments": {"a": 1, "b": "ü"}}}
    for key in ("reasoning", "reasoning_content"):
        message = {"role": "assistant", "content": None, key: "hm", "tool_calls": [call]}
        assert chat_messages(message) == (
            ChatMessage(
                "assistant", tool_calls=(ToolCall("f", '{"a": 1, "b": "ü"}'),), reasoning="hm"
            ),
        )
        # As an answer that was cut off before it had any content.
        del message["tool_calls"]
        assert chat_messages(message) == (ChatMessage("assistant", reasoning="hm"),)


def test_a_value_may_hold_dictionaries():
    call = {"function": {"name": "f"}}
    parts = [TEXT, ChatContentPart("b")]
    message = ChatMessage("assistant", parts=parts, tool_calls=[call])
    assert chat_messages(message) == (
        ChatMessage(
            "assistant",
            parts=(ChatContentPart("x"), ChatContentPart("b")),
            tool_calls=(ToolCall("f"),),
        ),
    )
    for wrong in ({"parts": [5]}, {"parts": None}, {"tool_calls": [5]}, {"tool_calls": None}):
        with pytest.raises(InvalidRequestError) as caught:
            chat_messages(ChatMessage("user", "x", **wrong))
        assert caught.value.field.startswith(f"chat.messages[0].{next(iter(wrong))}")


async def test_what_goes_with_the_messages_is_sent(client, router):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    options = {
        "tools": [tool, '{"name": "g"}'],
        "chat_template_kwargs": {"enable_thinking": False},
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    async with client.session(chat=CHAT, **options) as session:
        await session.answer()
    await client.generate(CHAT, **options).answer()
    for sent in (router.received[0].open.chat, router.prompts[0].chat):
        assert [json.loads(text) for text in sent.tools] == [tool, {"name": "g"}]
        assert json.loads(sent.chat_template_kwargs) == {"enable_thinking": False}
        assert sent.continue_final_message
        assert sent.HasField("add_generation_prompt")
        assert not sent.add_generation_prompt
    await client.generate(CHAT).answer()
    assert router.prompts[1].chat == pb.ChatPrompt(
        messages=[pb.ChatMessage(role="user", content=SLOT)]
    )


@pytest.mark.parametrize(
    "options",
    [{"tools": []}, {"chat_template_kwargs": {}}, {"add_generation_prompt": True}],
    ids=str,
)
async def test_what_goes_with_messages_needs_messages(client, options):
    with pytest.raises(InvalidRequestError, match="need chat messages"):
        client.session(prefix="x", **options)
    with pytest.raises(InvalidRequestError, match="need chat messages"):
        client.generate("x", **options)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": {"a": float("nan")}}, "chat.tools[0]"),
        ({"tools": [{"a": object()}]}, "chat.tools[0]"),
        ({"tools": [5]}, "chat.tools[0]"),
        ({"tools": "text"}, "chat.tools"),
        ({"chat_template_kwargs": [1]}, "chat.chat_template_kwargs"),
        ({"continue_final_message": 1}, "chat.continue_final_message"),
        ({"add_generation_prompt": "no"}, "chat.add_generation_prompt"),
    ],
    ids=str,
)
async def test_what_goes_with_messages_is_refused_by_name(client, options, field):
    with refused(field=field):
        client.session(chat=CHAT, **options)


def test_calls_other_than_of_functions_are_refused_by_name():
    call = {"type": "custom", "id": "1"}
    with refused("'custom'", field="chat.messages[0].tool_calls[0].type", error=UnsupportedError):
        chat_messages([{"role": "assistant", "tool_calls": [call]}])


def test_parts_other_than_text_are_refused_by_name():
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}]
    with refused("'image_url'", field="chat.messages[0].content[1]", error=UnsupportedError):
        chat_messages([{"role": "user", "content": parts}])


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "assistant", "content": None}, "chat.messages[1].content"),
        (ChatMessage("assistant", None), "chat.messages[1].content"),
        ({"role": None, "content": "x"}, "chat.messages[1].role"),
        ({"role": "user", "content": 5}, "chat.messages[1].content"),
        ({"role": "user", "content": [None]}, "chat.messages[1].content[0]"),
        ({"role": "user", "content": ["x"]}, "chat.messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "chat.messages[1].content[0]"),
        ({"role": "user"}, "chat.messages[1].content"),
        ({"content": "x"}, "chat.messages[1].role"),
        ({"role": "user", "content": "x", "audio": {"id": "1"}}, "chat.messages[1]"),
        ({"role": "user", "content": "x", "name": 5}, "chat.messages[1].name"),
        ({"role": "assistant", "tool_calls": []}, "chat.messages[1].content"),
        ({"role": "assistant", "tool_calls": "x"}, "chat.messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [5]}, "chat.messages[1].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{}]}, "chat.messages[1].tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]},
            "chat.messages[1].tool_calls[0].function.name",
        ),
        ("x", "chat.messages[1]"),
    ],
    ids=str,
)
async def test_what_is_no_chat_message_is_refused_by_its_place(client, message, field):
    chat = [{"role": "user", "content": SLOT}, message]
    with pytest.raises(InvalidRequestError) as of_session:
        client.session(chat=chat)
    with pytest.raises(InvalidRequestError) as of_prompt:
        client.generate(chat)
    assert (of_session.value.field, of_prompt.value.field) == (field, field)
