"""Calls that a request asks for come as OpenAI's SDK has them, on both routes and in both ways."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from stream2llm.gateway.requests import ChatRequest
from stream2llm.gateway.tool_calls import Call, gathered, reader_for
from stream2llm.gateway.tools import Calls, ToolUse
from tests.gateway_ring import GatewayRing

HELLO: Any = [{"role": "user", "content": "hello"}]
LOOK: dict[str, Any] = {
    "name": "look",
    "description": "what is <|end|> there",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
}
GO: dict[str, Any] = {"name": "go", "parameters": {"properties": {}}}
CHAT_TOOLS: Any = [{"type": "function", "function": LOOK}, {"type": "function", "function": GO}]
TOOLS: Any = [{"type": "function", **LOOK}, {"type": "function", **GO}]
# The answer to "required".
SCRIPT = '[{"name": "look", "parameters": {"q": "a } ]"}}, {"name": "go", "parameters": {}}]'
CALLED = [("look", {"q": "a } ]"}), ("go", {})]


async def test_required_calls_of_a_chat(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    ring = gateway.ring
    ring.brain.script = ring.encode(SCRIPT)
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": HELLO,
        "tools": CHAT_TOOLS,
        "tool_choice": "required",
    }
    done = (await sdk.chat.completions.create(**asked)).choices[0]
    async with sdk.chat.completions.stream(**asked) as stream:
        streamed = (await stream.get_final_completion()).choices[0]
    for choice in (done, streamed):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        calls = choice.message.tool_calls
        assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == CALLED
        assert len({call.id for call in calls}) == 2
    schema = json.loads(ring.record.open.sampling.structured_output.json_schema)
    assert (schema["type"], schema["minItems"], "maxItems" in schema) == ("array", 1, False)
    look = schema["items"]["anyOf"][0]
    assert list(look["properties"]) == ["name", "parameters"]
    assert look["properties"]["parameters"] == LOOK["parameters"]


async def test_a_named_call_of_a_chat(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    ring = gateway.ring
    ring.brain.script = ring.encode('{"q": "x"}')
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": HELLO,
        "tools": CHAT_TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "look"}},
    }
    done = await sdk.chat.completions.create(**asked, logprobs=True)
    async with sdk.chat.completions.stream(**asked) as stream:
        streamed = await stream.get_final_completion()
    for choice in (done.choices[0], streamed.choices[0]):
        (call,) = choice.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("look", '{"q": "x"}')
        assert choice.finish_reason == "stop"
    assert done.choices[0].logprobs.content
    constraint = ring.record.open.sampling.structured_output
    assert json.loads(constraint.json_schema) == LOOK["parameters"]
    # The template has the tools, in which control tokens are text.
    written = ring.router._parts.text.tokenizer.backend.decode(
        ring.record.sequence, skip_special_tokens=False
    )
    assert "what is <|end|> there" in written
    control = [token for token in ring.record.sequence if token < 3]
    # Those of the tools, the user, and the turn to come.
    assert control == [2, 0, 2, 0, 2]


async def test_calls_of_a_response(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    ring = gateway.ring
    ring.brain.script = ring.encode(SCRIPT)
    asked: dict[str, Any] = {
        "model": "tiny",
        "input": "hello",
        "tools": TOOLS,
        "tool_choice": "required",
    }
    done = await sdk.responses.create(**asked)
    async with sdk.responses.stream(**asked) as stream:
        events = [event async for event in stream]
        streamed = await stream.get_final_response()
    for response in (done, streamed):
        calls = [(item.name, json.loads(item.arguments)) for item in response.output]
        assert calls == CALLED
        assert {item.type for item in response.output} == {"function_call"}
        assert (response.tool_choice, len(response.tools)) == ("required", 2)
    kinds = [e.type.removeprefix("response.") for e in events if "delta" not in e.type]
    of_a_call = ["output_item.added", "function_call_arguments.done", "output_item.done"]
    assert kinds == ["created", "in_progress", *of_a_call, *of_a_call, "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    # The calls, and what they have found, are the input of the next response.
    await sdk.responses.create(
        model="tiny",
        input=[
            *({**item.model_dump(exclude_none=True)} for item in done.output),
            *(
                {"type": "function_call_output", "call_id": item.call_id, "output": "found"}
                for item in done.output
            ),
        ],
        instructions="brief",
        tools=TOOLS,
        tool_choice="none",
    )
    assert not ring.record.open.sampling.HasField("structured_output")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        # Without a parser.
        ({"tools": TOOLS}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "fly"}}, "tool_choice"),
        ({"tools": [*TOOLS, *TOOLS], "tool_choice": "none"}, "tools"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "none"}, "tools"),
        ({"tools": CHAT_TOOLS, "tool_choice": "none"}, "tools"),
        (
            {
                "tools": [{"type": "function", "name": "f", "parameters": {"type": "string"}}],
                "tool_choice": "required",
            },
            "tools[0]",
        ),
        # In a lane.
        ({"tools": TOOLS, "store": True}, "tool_choice"),
    ],
)
async def test_what_is_not_supported_is_refused(
    http: aiohttp.ClientSession, more: dict[str, Any], param: str
) -> None:
    async with http.post("/v1/responses", json={"input": "hello", **more}) as response:
        assert response.status == 400, await response.text()
        assert (await response.json())["error"]["param"] == param


def test_definitions_of_all_tools_come_together() -> None:
    def tool(name: str, kind: str) -> dict[str, Any]:
        parameters = {"$defs": {"D": {"type": kind}}, "properties": {"d": {"$ref": "#/$defs/D"}}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    def schema(*tools: Any) -> Any:
        asked = ChatRequest(
            messages=HELLO, tools=list(tools), tool_choice="required", parallel_tool_calls=False
        )
        return json.loads(asked.sampling().structured_output.json_schema)

    found = schema(tool("a", "string"), tool("b", "string"))
    assert found["$defs"] == {"D": {"type": "string"}}
    assert found["maxItems"] == 1
    with pytest.raises(Exception, match="differently"):
        schema(tool("a", "string"), tool("b", "number"))


JSON = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a"\\{}[],: é')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('a"\\}')), inner),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(st.text(min_size=1), st.dictionaries(st.text(max_size=3), JSON)), min_size=1
)


@given(CALLS, st.sampled_from([None, 1, 2]), st.data())
def test_a_list_of_calls_is_read_in_any_pieces(
    calls: list[tuple[str, Any]], indent: int | None, data: st.DataObject
) -> None:
    use = ToolUse(calls=Calls.REQUIRED)
    text = json.dumps([{"name": name, "parameters": p} for name, p in calls], indent=indent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    reader = reader_for(use)
    found: list[Call] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found = gathered(found, reader.feed(text[start:end]))
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls
    assert _calls_in(text) == found


def test_a_list_that_is_cut_off_has_the_beginning_of_its_last_call() -> None:
    assert _calls_in('[{"name": "look", "para') == []
    assert _calls_in('[{"name": "look", "parameters": {"q": "a') == [Call("look", '{"q": "a')]


def _calls_in(text: str) -> list[Call]:
    reader = reader_for(ToolUse(calls=Calls.REQUIRED))
    return gathered([], reader.feed(text))
