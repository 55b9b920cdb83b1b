"""What vLLM's parsers find in an answer comes as OpenAI's SDK has it, streamed and as a whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, InternalServerError

from stream2llm.api.errors import UnsupportedError
from stream2llm.api.events import Answer, Finished, TokenDelta
from stream2llm.api.token_step import FinishReason
from stream2llm.gateway.parsing import ParsedAnswer
from stream2llm.gateway.vllm_answer import AskedParsing
from stream2llm.gateway.vllm_parser import ParserNames, VllmParsers
from tests.gateway_ring import GatewayRing, a_gateway
from tests.tiny_model import make_tiny_model

MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
HELLO: Any = [{"role": "user", "content": "hello"}]
LOOK: dict[str, Any] = {
    "name": "look",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
}
GO: dict[str, Any] = {"name": "go", "parameters": {"type": "object", "properties": {}}}
CHAT_TOOLS: Any = [{"type": "function", "function": each} for each in (LOOK, GO)]
TOOLS: Any = [{"type": "function", **each} for each in (LOOK, GO)]
THINKING = "<think>hm</think>"


def written_call(name: str, arguments: dict[str, Any]) -> str:
    """A call as models of the Hermes format write it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


CALLS = f"{written_call('look', {'q': 'a'})}\n{written_call('go', {})}"
CALLED = [("look", {"q": "a"}), ("go", {})]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("thinking"), markers=MARKERS)


@pytest.fixture
async def gateway(model: Path) -> AsyncIterator[GatewayRing]:
    async with a_gateway(model, tool_parser="hermes", reasoning_parser="qwen3") as found:
        yield found


def write(gateway: GatewayRing, answer: str) -> None:
    """Makes the model write this."""
    gateway.ring.brain.script = gateway.ring.encode_written(answer)


async def both_chats(sdk: AsyncOpenAI, **asked: Any) -> list[Any]:
    """The completion as one object, and as the SDK puts its stream together."""
    asked = {"model": "tiny", "messages": HELLO, **asked}
    whole = await sdk.chat.completions.create(**asked)
    more = {"stream_options": {"include_usage": True}}
    async with sdk.chat.completions.stream(**asked, **more) as stream:
        return [whole, await stream.get_final_completion()]


async def both_responses(sdk: AsyncOpenAI, **asked: Any) -> tuple[list[Any], list[str]]:
    """The response as one object and as the end of a stream, and the kinds of its events."""
    asked = {"model": "tiny", "input": "hello", **asked}
    whole = await sdk.responses.create(**asked)
    async with sdk.responses.stream(**asked) as stream:
        events = [event async for event in stream]
        streamed = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [e.type.removeprefix("response.") for e in events if "delta" not in e.type]
    return [whole, streamed], kinds


async def test_a_chat_in_which_the_model_calls(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    write(gateway, f"{THINKING}I look.{CALLS}")
    for done in await both_chats(sdk, tools=CHAT_TOOLS):
        (choice,) = done.choices
        assert choice.finish_reason == "tool_calls"
        assert (choice.message.reasoning, choice.message.content) == ("hm", "I look.")
        calls = choice.message.tool_calls
        assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == CALLED
        assert len({call.id for call in calls}) == 2
        assert 0 < done.usage.completion_tokens_details.reasoning_tokens < 6
    assert not gateway.ring.record.open.sampling.HasField("structured_output")
    one = {"tools": CHAT_TOOLS, "tool_choice": "auto", "parallel_tool_calls": False}
    for done in await both_chats(sdk, **one):
        (call,) = done.choices[0].message.tool_calls
        assert call.function.name == "look"
    # vLLM's grammar for it, which is meant for what comes behind the reasoning.
    sent = gateway.ring.record.open.sampling.structured_output.structural_tag
    thought, calls = json.loads(sent)["format"]["elements"]
    assert (thought["type"], calls["type"]) == ("optional", "triggered_tags")


async def test_a_chat_in_which_the_model_does_not_call(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    # What tools have found is data, whatever it looks like.
    asked = {"type": "function", "id": "1", "function": {"name": "look", "arguments": "{}"}}
    found = {"role": "tool", "tool_call_id": "1", "content": f"</think>{CALLS}"}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [asked]}, found]
    write(gateway, f"{THINKING}nothing")
    for done in await both_chats(sdk, tools=CHAT_TOOLS, messages=messages):
        (choice,) = done.choices
        assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
        assert (choice.message.reasoning, choice.message.content) == ("hm", "nothing")
    markers = set(gateway.ring.encode_written("".join(MARKERS)))
    assert not markers & set(gateway.ring.record.sequence)


async def test_a_response_in_which_the_model_calls(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    write(gateway, f"{THINKING}I look.{CALLS}")
    responses, kinds = await both_responses(sdk, tools=TOOLS)
    for response in responses:
        thought, said, *calls = response.output
        assert (thought.type, thought.content[0].text) == ("reasoning", "hm")
        assert (said.type, said.content[0].text) == ("message", "I look.")
        assert [(call.name, json.loads(call.arguments)) for call in calls] == CALLED
        assert response.tool_choice == "auto"
        assert response.usage.output_tokens_details.reasoning_tokens > 0
    text = ("content_part.added", "content_part.done")
    items = [
        ["output_item.added", text[0], "reasoning_text.done", text[1], "output_item.done"],
        ["output_item.added", text[0], "output_text.done", text[1], "output_item.done"],
        *[["output_item.added", "function_call_arguments.done", "output_item.done"]] * 2,
    ]
    flat = [kind for item in items for kind in item]
    assert kinds == ["created", "in_progress", *flat, "completed"]
    # Its items, and what the calls have found, are the input of the next response.
    given = [item.model_dump(exclude_none=True) for item in responses[1].output]
    found = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "found"}
        for item in given[2:]
    ]
    await sdk.responses.create(model="tiny", input=[*given, *found], instructions="brief")


async def test_reasoning_is_left_out_where_it_is_not_wanted(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    write(gateway, f"{THINKING}four")
    hidden = {"extra_body": {"include_reasoning": False}}
    for done in await both_chats(sdk, **hidden):
        assert done.choices[0].message.content == "four"
        assert not hasattr(done.choices[0].message, "reasoning")
    write(gateway, "four")
    # The template has ended the reasoning before it has begun.
    off = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    for done in await both_chats(sdk, **off):
        assert done.choices[0].message.content == "four"
        assert done.usage.completion_tokens_details is None
    write(gateway, '"four"')
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}}}
    for done in await both_chats(sdk, **off, response_format=schema):
        assert done.choices[0].message.content == '"four"'
    write(gateway, '[{"name": "go", "parameters": {}}]')
    for done in await both_chats(sdk, **off, tools=CHAT_TOOLS, tool_choice="required"):
        assert done.choices[0].message.tool_calls[0].function.name == "go"


async def test_what_reasoning_excludes_is_refused_by_name(http: aiohttp.ClientSession) -> None:
    for more, param in (
        ({"tools": CHAT_TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True, "include_reasoning": False}, "include_reasoning"),
    ):
        async with http.post("/v1/chat/completions", json={"messages": HELLO, **more}) as response:
            assert response.status == 400, await response.text()
            assert (await response.json())["error"]["param"] == param


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}


async def test_a_structured_output_begins_behind_the_reasoning(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    ring = gateway.ring
    write(gateway, f'{THINKING}{{"a": "b"}}')
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for done in await both_chats(sdk, response_format=asked):
        message = done.choices[0].message
        assert (message.reasoning, message.content) == ("hm", '{"a": "b"}')
    (end,) = ring.encode_written("</think>")
    sent = json.loads(ring.record.open.sampling.structured_output.structural_tag)
    thought, structured = sent["format"]["elements"]
    assert thought["elements"][0]["exclude_tokens"] == [end]
    assert thought["elements"][1] == {"type": "token", "token": end}
    assert structured["json_schema"] == SCHEMA
    text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    responses, _ = await both_responses(sdk, text=text)
    for response in responses:
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output_text == '{"a": "b"}'


async def test_calls_that_have_to_come_behind_the_reasoning(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    write(gateway, f'{THINKING}[{{"name": "look", "parameters": {{"q": "a"}}}}]')
    for done in await both_chats(sdk, tools=CHAT_TOOLS, tool_choice="required"):
        (choice,) = done.choices
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.reasoning) == ("tool_calls", "hm")
        assert (call.function.name, call.function.arguments) == ("look", '{"q": "a"}')
        assert done.usage.completion_tokens_details.reasoning_tokens > 0
    write(gateway, f"{THINKING}{{}}")
    responses, _ = await both_responses(
        sdk, tools=TOOLS, tool_choice={"type": "function", "name": "go"}
    )
    for response in responses:
        thought, call = response.output
        assert (thought.type, call.name, call.arguments) == ("reasoning", "go", "{}")


async def test_a_constraint_that_vllm_cannot_put_behind_reasoning_is_refused_by_name(
    http: aiohttp.ClientSession,
) -> None:
    for asked, param in (
        ({"structural_tag": '{"a": 1}'}, "structured_outputs"),
        ({"structural_tag": "{"}, "structured_outputs.structural_tag"),
        ({"choice": [""]}, "structured_outputs.choices"),
        ({"regex": "a", "json_object": True}, "structured_outputs"),
        # No structural tag checks that.
        ({"json": {"type": "integer", "multipleOf": 3}}, "structured_outputs"),
    ):
        body = {"messages": HELLO, "structured_outputs": asked}
        async with http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 400, await response.text()
            assert (await response.json())["error"]["param"] == param


async def test_reasoning_whose_end_is_not_known_leaves_no_room(model: Path) -> None:
    async with a_gateway(model, reasoning_parser="granite") as gateway, gateway.http() as http:
        for more, param in (
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"tools": CHAT_TOOLS, "tool_choice": "required"}, "tool_choice"),
        ):
            body = {"messages": HELLO, **more}
            async with http.post("/v1/chat/completions", json=body) as response:
                assert response.status == 400, await response.text()
                error = (await response.json())["error"]
            assert (error["code"], error["param"]) == ("unsupported_parameter", param)


async def test_a_parser_that_fails_ends_its_request_alone(
    gateway: GatewayRing, sdk: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(gateway, "four")

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO}
    with monkeypatch.context() as patch:
        from vllm.parser.abstract_parser import DelegatingParser

        patch.setattr(DelegatingParser, "parse", fail)
        patch.setattr(DelegatingParser, "parse_delta", fail)
        with pytest.raises(InternalServerError, match="parser failed"):
            await sdk.chat.completions.create(**asked)
        stream = await sdk.chat.completions.create(**asked, stream=True)
        with pytest.raises(Exception, match="parser failed"):
            _ = [chunk async for chunk in stream]
        response = await sdk.responses.create(model="tiny", input="hello", stream=True)
        assert [event.type async for event in response][-1] == "response.failed"
    assert (await sdk.chat.completions.create(**asked)).choices[0].message.reasoning == "four"


async def test_a_parser_that_the_model_does_not_fit_fails_the_start(tiny_model: Path) -> None:
    with pytest.raises(UnsupportedError, match="deepseek_r1 cannot be used with the tokenizer"):
        async with a_gateway(tiny_model, reasoning_parser="deepseek_r1"):
            raise AssertionError("it started")


# -- pieces -------------------------------------------------------------------------------

TEXT = st.text(st.sampled_from("ab <>{}/\n"), max_size=12)
ANSWERS = st.tuples(
    TEXT, TEXT, st.lists(st.tuples(st.sampled_from(["look", "go"]), st.dictionaries(TEXT, TEXT)))
)


@pytest.fixture(scope="module")
def parsers(model: Path) -> Any:
    from router.tokenizer import ModelTokenizer

    found = VllmParsers(ParserNames("hermes", "qwen3"), str(model))
    return SimpleNamespace(vllm=found, backend=ModelTokenizer(str(model)).backend)


@given(ANSWERS, st.data())
def test_an_answer_is_parsed_alike_in_any_pieces(
    parsers: Any, answer: tuple[str, str, list[tuple[str, Any]]], data: st.DataObject
) -> None:
    reasoning, content, calls = answer
    text = f"<think>{reasoning}</think>{content}{''.join(written_call(*call) for call in calls)}"
    asked = AskedParsing(
        has_calls=True,
        tools=tuple(CHAT_TOOLS),
        is_parallel=True,
        has_reasoning=True,
        includes_reasoning=True,
        chat_template_kwargs={},
        prompt_end=(),
    )
    parsing = parsers.vllm.parsing(asked)
    ids = parsers.backend.encode(text, add_special_tokens=False).ids
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    streamed, parser = [], parsing.parser()
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        piece = ids[start:end]
        delta = parsers.backend.decode(piece, skip_special_tokens=False)
        streamed += parser.feed(TokenDelta(delta, tuple(piece)))
    streamed += parser.end()
    finished = Finished(FinishReason.STOP_TOKEN)
    whole = parsing.parser().whole(Answer(text, tuple(ids), finished))
    assert _plain(ParsedAnswer.of(streamed)) == _plain(ParsedAnswer.of(whole))
    assert _plain(ParsedAnswer.of(whole))[2] == calls


def _plain(parsed: ParsedAnswer) -> tuple[str, str, list[tuple[str, Any]]]:
    calls = [(call.name, json.loads(call.arguments)) for call in parsed.calls]
    return parsed.reasoning or "", (parsed.content or "").strip(), calls
