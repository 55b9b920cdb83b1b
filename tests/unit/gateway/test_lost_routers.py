"""Streamed answers whose router is lost go on at another one: no character twice, none missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.gateway_ring import GatewayRing, a_gateway
from tests.lane_client import LaneClient, turns, user
from tests.polling import eventually
from tests.router_ring import Ring, a_ring, soon
from tests.tiny_model import make_tiny_model

# Some of its characters have several tokens.
ANSWER = "naïve → ünï, and so on"
# A control token's text is text at every router.
HELLO = "<|turn|> hello"
MESSAGES: Any = [{"role": "user", "content": HELLO}]
USAGE: Any = {"stream_options": {"include_usage": True}}
TRUNCATED: Any = {"extra_body": {"truncate_prompt_tokens": 5}}
TextOf = Callable[[Any], str]


class Rings:
    """Two routers with workers of their own, which write the same."""

    def __init__(self, gateway: GatewayRing, other: Ring) -> None:
        self.both = (gateway.ring, other)
        gateway.show(*(ring.address.grpc_address for ring in self.both))

    def write(self, answer: str) -> None:
        for ring in self.both:
            ring.brain.script = ring.encode_written(answer)

    def hold(self) -> None:
        """Lets decode give a few tokens of an answer."""
        for ring in self.both:
            ring.prefill.records.clear()
            ring.decode.hold_after_steps = 3

    async def lose(self) -> tuple[Ring, Ring]:
        """Loses the router that has the only session; the other one may answer to the end."""

        async def having() -> list[Ring]:
            return [ring for ring in self.both if ring.prefill.records]

        (lost,) = await eventually(having, bool)
        for ring in self.both:
            if ring is not lost:
                ring.decode.hold_after_steps, left = None, ring
        await lost.lose_router()
        return lost, left


@pytest.fixture
async def rings(tiny_model: Path, gateway: GatewayRing) -> AsyncIterator[Rings]:
    async with a_ring(tiny_model) as other:
        found = Rings(gateway, other)
        found.write(ANSWER)
        yield found


async def lost_in_the_middle(
    rings: Rings, events: AsyncIterator[Any], text_of: TextOf
) -> tuple[list[Any], Ring, Ring]:
    """All events, the router that was lost when the first text was there, and the other one."""
    seen: list[Any] = []
    while not whole_text(seen, text_of):
        seen.append(await soon(anext(events)))
    lost, left = await rings.lose()
    seen += await soon(collect(events))
    return seen, lost, left


async def collect(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


def whole_text(events: list[Any], text_of: TextOf) -> str:
    return "".join(map(text_of, events))


def chat_text(chunk: Any) -> str:
    return "".join(choice.delta.content or "" for choice in chunk.choices)


def completion_text(chunk: Any) -> str:
    return "".join(choice.text for choice in chunk.choices)


def response_text(event: Any) -> str:
    return event.delta if event.type == "response.output_text.delta" else ""


@pytest.mark.parametrize(
    ("route", "prompt", "more", "text_of"),
    [
        ("chat.completions", {"messages": MESSAGES}, {}, chat_text),
        ("chat.completions", {"messages": MESSAGES}, TRUNCATED, chat_text),
        ("completions", {"prompt": HELLO, "max_tokens": 64}, {}, completion_text),
        ("completions", {"prompt": HELLO, "max_tokens": 64}, TRUNCATED, completion_text),
    ],
)
async def test_chats_and_completions(
    rings: Rings, sdk: AsyncOpenAI, route: str, prompt: Any, more: Any, text_of: TextOf
) -> None:
    routes: Any = sdk
    for name in route.split("."):
        routes = getattr(routes, name)
    asked = {"model": "tiny", "stream": True, **prompt, **USAGE, **more}
    expected = await collect(aiter(await routes.create(**asked)))
    rings.hold()
    events = aiter(await routes.create(**asked))
    seen, lost, left = await lost_in_the_middle(rings, events, text_of)
    assert whole_text(seen, text_of) == whole_text(expected, text_of) == ANSWER
    assert seen[-2].choices[0].finish_reason == "stop"
    assert (expected[-2].stream2llm, seen[-2].stream2llm) == ({"restarts": 0}, {"restarts": 1})
    assert seen[-1].usage.total_tokens == expected[-1].usage.total_tokens
    begun = lost.record.sequence
    assert left.record.sequence[: len(begun)] == begun
    assert 0 < left.record.answer_tokens < len(lost.encode_written(ANSWER))


async def test_a_response_to_a_prompt(rings: Rings, sdk: AsyncOpenAI) -> None:
    rings.hold()
    stream = await sdk.responses.create(model="tiny", input=HELLO, stream=True)
    seen, _, _ = await lost_in_the_middle(rings, aiter(stream), response_text)
    check_response(seen)
    assert seen[-1].response.stream2llm == {"restarts": 1}


async def test_whole_answers_say_so_too(rings: Rings, sdk: AsyncOpenAI) -> None:
    for create, prompt in (
        (sdk.chat.completions.create, {"messages": MESSAGES}),
        (sdk.completions.create, {"prompt": HELLO, "max_tokens": 64}),
        (sdk.responses.create, {"input": HELLO}),
    ):
        done: Any = await create(model="tiny", **prompt)
        assert done.stream2llm == {"restarts": 0}
    rings.hold()
    asking = asyncio.ensure_future(sdk.chat.completions.create(model="tiny", messages=MESSAGES))
    await rings.lose()
    resumed: Any = await soon(asking)
    assert resumed.choices[0].message.content == ANSWER
    assert resumed.stream2llm == {"restarts": 1}


async def test_a_response_of_a_lane(rings: Rings, sdk: AsyncOpenAI) -> None:
    async with sdk.responses.connect() as connection:
        client = LaneClient(connection)
        rings.hold()
        first = await client.prepare(user("hello"))
        await client.send(previous_response_id=first.id)
        seen, _, left = await lost_in_the_middle(rings, ending(connection), response_text)
        check_response(seen)
        assert seen[-1].response.stream2llm["restarts"] == 1
        await client.answer(user("more"), previous_response_id=seen[-1].response.id)
    said = turns(("user", "hello"), ("assistant", ANSWER), ("user", "more"), answering=True)
    assert left.record.sequence == left.encode_written(said)


async def ending(connection: Any) -> AsyncIterator[Any]:
    """The events up to the last one of a response."""
    while True:
        event = await connection.recv()
        yield event
        if event.type in ("response.completed", "response.failed"):
            return


def check_response(events: list[Any]) -> None:
    assert events[-1].type == "response.completed", events[-1]
    assert whole_text(events, response_text) == ANSWER
    assert events[-1].response.output_text == ANSWER
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_an_answer_that_is_parsed(tmp_path: Path) -> None:
    markers = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    model = make_tiny_model(tmp_path, markers=markers)
    tools: Any = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    async with (
        a_gateway(model, tool_parser="hermes", reasoning_parser="qwen3") as gateway,
        a_ring(model) as other,
        AsyncOpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as sdk,
    ):
        rings = Rings(gateway, other)
        call = '<tool_call>\n{"name": "look", "arguments": {"q": "a"}}\n</tool_call>'
        rings.write(f"<think>naïve</think>{call}")
        rings.hold()
        stream = await sdk.responses.create(model="tiny", input="hi", tools=tools, stream=True)
        seen, _, _ = await lost_in_the_middle(
            rings,
            aiter(stream),
            lambda event: event.delta if event.type == "response.reasoning_text.delta" else "",
        )
    thought, called = seen[-1].response.output
    assert thought.content[0].text == "naïve"
    assert (called.name, called.arguments) == ("look", '{"q": "a"}')


async def test_an_answer_goes_on_at_a_router_that_is_new(
    tiny_model: Path, gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    """All routers that there were when it began are gone."""
    asked: Any = {"model": "tiny", "messages": MESSAGES, "stream": True}
    gateway.ring.brain.script = gateway.ring.encode_written(ANSWER)
    gateway.ring.decode.hold_after_steps = 3
    events = aiter(await sdk.chat.completions.create(**asked))
    seen: list[Any] = []
    while not whole_text(seen, chat_text):
        seen.append(await soon(anext(events)))
    async with a_ring(tiny_model) as other:
        other.brain.script = other.encode_written(ANSWER)
        gateway.show()
        gateway.show(other.address.grpc_address)
        await gateway.ring.lose_router()
        seen += await soon(collect(events))
    assert whole_text(seen, chat_text) == ANSWER
