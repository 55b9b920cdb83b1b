"""Structured answers, by each parameter that asks for one: routers get gRPC's own constraint."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from stream2llm.api.errors import InvalidRequestError
from stream2llm.gateway.requests import ChatRequest, CompletionRequest
from stream2llm.gateway.response_requests import ResponsesRequest
from tests.gateway_ring import GatewayRing
from tests.lane_client import LaneClient, user

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "string"}}}
NAMED = {"name": "fact", "schema": SCHEMA, "strict": True}


class Fact(BaseModel):
    """What an answer says."""

    depth: int


def constraint_of(request: Any) -> dict[str, Any]:
    """The one field that is set."""
    found = request.sampling().structured_output
    names = ("json_schema", "json_object", "regex", "choices", "grammar", "structural_tag")
    return {name: getattr(found, name) for name in names if getattr(found, name)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "json_object"}, {"json_object": True}),
        # The order of the keys is that of the answer.
        ({"type": "json_schema", "json_schema": NAMED}, {"json_schema": json.dumps(SCHEMA)}),
    ],
)
def test_response_format(given: Any, expected: dict[str, Any]) -> None:
    chat = ChatRequest(messages=HELLO, response_format=given)
    assert constraint_of(chat) == expected
    assert constraint_of(CompletionRequest(prompt="a", response_format=given)) == expected
    text = ChatRequest(messages=HELLO, response_format={"type": "text"})
    assert text.sampling().structured_output is None


def test_text_format_of_a_response() -> None:
    asked = ResponsesRequest(input="a", text={"format": {"type": "json_schema", **NAMED}})
    assert constraint_of(asked) == {"json_schema": json.dumps(SCHEMA)}
    for text in ({}, {"format": {"type": "text"}}):
        assert ResponsesRequest(input="a", text=text).sampling().structured_output is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"json": SCHEMA}, {"json_schema": json.dumps(SCHEMA)}),
        ({"json": '{"type": "null"}'}, {"json_schema": '{"type": "null"}'}),
        ({"json_object": True}, {"json_object": True}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"choice": ["yes", "no"]}, {"choices": ("yes", "no")}),
        ({"grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ({"structural_tag": "{}"}, {"structural_tag": "{}"}),
    ],
)
def test_structured_outputs(given: Any, expected: dict[str, Any]) -> None:
    for request in (
        ChatRequest(messages=HELLO, structured_outputs=given),
        CompletionRequest(prompt="a", structured_outputs=given),
        ResponsesRequest(input="a", structured_outputs=given),
    ):
        assert constraint_of(request) == expected
        assert request.parameter_names()["structured_output"] == "structured_outputs"


def test_two_parameters_with_a_constraint_are_refused() -> None:
    asked = ChatRequest(
        messages=HELLO, response_format={"type": "json_object"}, structured_outputs={"regex": "a"}
    )
    with pytest.raises(InvalidRequestError, match="exclude each other"):
        asked.sampling()


async def test_they_are_refused_by_their_name(http: aiohttp.ClientSession) -> None:
    chat = {"model": "tiny", "messages": HELLO}
    response = {"model": "tiny", "input": "hello"}
    for path, body, param in (
        ("chat/completions", {**chat, "response_format": {"type": "xml"}}, "response_format"),
        (
            "chat/completions",
            {**chat, "response_format": {"type": "json_schema"}},
            "response_format",
        ),
        ("responses", {**response, "text": {"verbosity": "low"}}, "text"),
        # By the router:
        (
            "chat/completions",
            {**chat, "structured_outputs": {"regex": "a", "grammar": "b"}},
            "structured_outputs",
        ),
        (
            "responses",
            {
                **response,
                "text": {"format": {"type": "json_schema", "name": "a", "schema": {"a": "\ud800"}}},
            },
            "text.format.json_schema",
        ),
    ):
        async with http.post(f"/v1/{path}", json=body) as answer:
            assert answer.status == 400, await answer.text()
            assert (await answer.json())["error"]["param"] == param


async def test_the_sdk_parses_what_it_asked_for(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    ring = gateway.ring
    ring.brain.script = ring.encode('{"depth": 7}')
    chat = await sdk.chat.completions.parse(model="tiny", messages=HELLO, response_format=Fact)
    assert chat.choices[0].message.parsed == Fact(depth=7)
    response = await sdk.responses.parse(model="tiny", input="hello", text_format=Fact)
    assert response.output_parsed == Fact(depth=7)
    assert response.text.format.schema_["required"] == ["depth"]
    for record in ring.prefill.records:
        schema = json.loads(record.open.sampling.structured_output.json_schema)
        assert schema["properties"]["depth"]["type"] == "integer"


async def test_a_lane_takes_sampling_and_format_of_a_response(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    asked: dict[str, Any] = {"text": {"format": {"type": "json_object"}}, "min_p": 0.5}
    async with sdk.responses.connect() as connection:
        client = LaneClient(connection)
        first = await client.prepare(user("hello"), **asked)
        answer = await client.answer(previous_response_id=first.id, **asked)
        assert answer.text.format.type == "json_object"
        (record,) = gateway.ring.prefill.records
        assert record.open.sampling.structured_output.json_object
        assert record.open.sampling.min_p == 0.5
        refused = await client.refusal(user("a"), structured_outputs={"regex": ""})
        assert refused.error.param == "structured_outputs.regex"
