"""Tools and reasoning of streamed context: as in a request that is a whole prompt, over more turns."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from tests.gateway_ring import GatewayRing, a_gateway
from tests.lane_client import LaneClient, turns, user
from tests.tiny_model import make_tiny_model

LOOK: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
}
GO: Any = {"type": "function", "name": "go", "parameters": {"type": "object", "properties": {}}}
TOOLS: Any = [LOOK, GO]
REQUIRED: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required"}
LISTED = '[{"name": "look", "parameters": {"q": "a"}}, {"name": "go", "parameters": {}}]'
# In the Hermes format.
CALLED = '<tool_call>\n{"name": "look", "arguments": {"q": "a"}}\n</tool_call>'
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    markers = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    return make_tiny_model(tmp_path_factory.mktemp("thinking"), markers=markers)


@pytest.fixture
async def thinking(model: Path) -> AsyncIterator[GatewayRing]:
    async with a_gateway(model, tool_parser="hermes", reasoning_parser="qwen3") as found:
        yield found


@pytest.fixture
async def client(sdk: AsyncOpenAI) -> AsyncIterator[LaneClient]:
    async with sdk.responses.connect() as connection:
        yield LaneClient(connection)


@pytest.fixture
async def thinking_sdk(thinking: GatewayRing) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=thinking.base_url, api_key="any", max_retries=0) as sdk:
        yield sdk


def plain(event: Any, response_id: str) -> dict[str, Any]:
    """An event without what is of one response, or of lanes, alone."""
    suffix = response_id.removeprefix("resp_")
    fields = json.loads(event.model_dump_json(exclude_none=True).replace(suffix, "ID"))
    response = fields.get("response", {})
    for name in ("created_at", "completed_at", "stream2llm"):
        response.pop(name, None)
    response.get("usage", {}).pop("input_tokens_details", None)
    return dict(fields)


async def same_as_whole(sdk: AsyncOpenAI, client: LaneClient, **asked: Any) -> Any:
    """The response of a lane, whose events are those of the same request as a whole prompt."""
    events = await client.create(user("hello"), **asked)
    stream = await sdk.responses.create(
        model="tiny",
        input=[user("hello")],
        stream=True,
        **{name: value for name, value in asked.items() if name not in NO_THINKING},
        extra_body={name: asked[name] for name in NO_THINKING if name in asked},
    )
    whole = [event async for event in stream]
    of_lane, of_whole = events[0].response.id, whole[0].response.id
    assert [plain(e, of_lane) for e in events] == [plain(e, of_whole) for e in whole]
    return events[-1].response


def found_by(response: Any) -> list[dict[str, Any]]:
    """What the calls of a response have found, as the input of the next."""
    calls = [item.call_id for item in response.output if item.type == "function_call"]
    return [{"type": "function_call_output", "call_id": each, "output": "found"} for each in calls]


async def continued_as_whole(
    gateway: GatewayRing, sdk: AsyncOpenAI, client: LaneClient, response: Any, **asked: Any
) -> None:
    """Continues a response; the prompt is that of a client that keeps the conversation itself."""
    found = found_by(response)
    await client.answer(*found, previous_response_id=response.id, **asked)
    continued = gateway.ring.record.sequence
    items = [item.model_dump(exclude_none=True) for item in response.output]
    await sdk.responses.create(model="tiny", input=[user("hello"), *items, *found], **asked)
    assert continued == gateway.ring.record.sequence


async def test_calls_that_have_to_come(
    gateway: GatewayRing, sdk: AsyncOpenAI, client: LaneClient
) -> None:
    ring = gateway.ring
    ring.brain.script = ring.encode(LISTED)
    done = await same_as_whole(sdk, client, **REQUIRED)
    assert [(item.name, item.arguments) for item in done.output] == [
        ("look", '{"q": "a"}'),
        ("go", "{}"),
    ]
    ring.brain.script = None
    await continued_as_whole(gateway, sdk, client, done, tools=TOOLS, tool_choice="none")
    ring.brain.script = ring.encode("{}")
    named = {"tools": TOOLS, "tool_choice": {"type": "function", "name": "go"}}
    (call,) = (await same_as_whole(sdk, client, **named)).output
    assert (call.name, call.arguments) == ("go", "{}")


async def test_calls_and_reasoning_that_the_model_decides_on(
    thinking: GatewayRing, thinking_sdk: AsyncOpenAI
) -> None:
    ring, sdk = thinking.ring, thinking_sdk
    async with sdk.responses.connect() as connection:
        client = LaneClient(connection)
        ring.brain.script = ring.encode_written(f"<think>hm</think>I look.{CALLED}{CALLED}")
        done = await same_as_whole(sdk, client, tools=TOOLS)
        kinds = ["reasoning", "message", "function_call", "function_call"]
        assert [item.type for item in done.output] == kinds
        assert done.usage.output_tokens_details.reasoning_tokens > 0
        ring.brain.script = ring.encode_written("<think>so</think>it is there")
        await continued_as_whole(thinking, sdk, client, done, tools=TOOLS)
        ring.brain.script = ring.encode_written(f"I look.{CALLED}{CALLED}")
        one = {"tools": TOOLS, "parallel_tool_calls": False, **NO_THINKING}
        said, call = (await same_as_whole(sdk, client, **one)).output
        assert (said.type, call.type) == ("message", "function_call")
        ring.brain.script = ring.encode_written("<think>hm</think>yes")
        (said,) = (await client.answer(user("hello"), include_reasoning=False)).output
        assert said.content[0].text == "yes"


async def test_a_prepared_response_is_answered_with_its_tools_in_the_same_session(
    thinking: GatewayRing, thinking_sdk: AsyncOpenAI
) -> None:
    ring = thinking.ring
    ring.brain.script = ring.encode_written(f"<think>hm</think>{CALLED}")
    async with thinking_sdk.responses.connect() as connection:
        client = LaneClient(connection)
        first = await client.prepare(user("hello"), tools=TOOLS)
        done = await client.answer(user("more"), previous_response_id=first.id, tools=TOOLS)
        (record,) = ring.prefill.records
        assert [item.type for item in done.output] == ["reasoning", "function_call"]
        assert record.invalidated == 0
        # Tools are not carried over: other ones change the begin of the prompt.
        again = await client.prepare(user("hello"), tools=TOOLS)
        other = await client.prepare(user("more"), previous_response_id=again.id, tools=[GO])
        facts = other.stream2llm
        assert facts["replaced_tokens"] > facts["kept_tokens"] > 0
        # Nothing to parse before there is a turn.
        await client.prepare(stream_id="empty", tools=TOOLS)


async def test_stored_responses_have_tools(http: aiohttp.ClientSession, gateway: Any) -> None:
    ring = gateway.ring

    async def create(*items: Any, **more: Any) -> Any:
        body = {"model": "tiny", "input": list(items), "store": True, **more}
        async with http.post("/v1/responses", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    ring.brain.script = ring.encode(LISTED)
    done = await create(user("hello"), **REQUIRED)
    ring.brain.script = None
    found = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "found"}
        for item in done["output"]
    ]
    await create(*found, previous_response_id=done["id"], tools=TOOLS, tool_choice="none")
    written = ring.router._parts.text.tokenizer.backend.decode(
        ring.record.sequence, skip_special_tokens=False
    )
    assert written.count('"name": "look"') == 2  # the tool, and its call
    assert written.endswith(turns(("tool", "found"), ("tool", "found"), answering=True))


async def test_an_answer_that_cannot_be_parsed_is_not_kept(
    thinking: GatewayRing, thinking_sdk: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.parser.abstract_parser import DelegatingParser

    def fail(*_: Any, finished: bool, **__: Any) -> None:
        if finished:
            raise ZeroDivisionError

    async with thinking_sdk.responses.connect() as connection:
        client = LaneClient(connection)
        with monkeypatch.context() as patch:
            patch.setattr(DelegatingParser, "parse_delta", fail)
            events = await client.create(user("hello"))
        failed = events[-1]
        assert (failed.type, failed.response.error.code) == ("response.failed", "server_error")
        refused = await client.refusal(previous_response_id=failed.response.id)
        assert refused.error.code == "previous_response_not_found"
        await client.answer(user("hello"))


async def test_tools_that_exclude_each_other_end_no_connection(client: LaneClient) -> None:
    def tool(name: str, kind: str) -> dict[str, Any]:
        parameters = {"$defs": {"D": {"type": kind}}, "properties": {"d": {"$ref": "#/$defs/D"}}}
        return {"type": "function", "name": name, "parameters": parameters}

    tools = [tool("a", "string"), tool("b", "number")]
    refused = await client.refusal(user("hello"), tools=tools, tool_choice="required")
    assert (refused.status, refused.error.param) == (400, "tools")
    await client.answer(user("hello"))


async def test_an_answer_that_is_cut_off_in_its_reasoning_is_continued(
    thinking: GatewayRing, thinking_sdk: AsyncOpenAI
) -> None:
    ring = thinking.ring
    ring.brain.script = ring.encode_written("<think>one, two, three")
    async with thinking_sdk.responses.connect() as connection:
        client = LaneClient(connection)
        few = {"max_output_tokens": 5}
        cut = await client.answer(user("hello"), **few)
        assert (cut.status, [item.type for item in cut.output]) == ("incomplete", ["reasoning"])
        await continued_as_whole(thinking, thinking_sdk, client, cut, **few)


async def test_an_answer_whose_call_is_cut_off_cannot_be_continued(
    gateway: GatewayRing, client: LaneClient
) -> None:
    first = await client.prepare(user("hello"), **REQUIRED)
    gateway.ring.brain.script = gateway.ring.encode(LISTED[:40])
    cut = await client.answer(previous_response_id=first.id, **REQUIRED)
    assert [item.arguments for item in cut.output] == ['{"q": "a']
    refused = await client.refusal(*found_by(cut), previous_response_id=cut.id, **REQUIRED)
    assert (refused.status, refused.error.param) == (400, "input[1].tool_calls[0].arguments")
    await client.answer(previous_response_id=first.id, **REQUIRED)
