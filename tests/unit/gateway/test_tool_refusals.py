"""Tools that cannot be: a status of 400 and OpenAI's form, with the parameter at fault."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from stream2llm.api.structured_output import refused
from tests.gateway_ring import GatewayRing, a_gateway
from tests.lane_client import LaneClient, user
from tests.tiny_model import make_tiny_model

PATHS = ("/v1/chat/completions", "/v1/responses")


def schema(properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def nested(depth: int) -> dict[str, Any]:
    """A schema so deep."""
    inner = schema({})
    for _ in range(depth):
        inner = schema({"q": inner})
    return inner


TOO_MANY = schema({f"q{i}": {"type": "string", "maxLength": 1000} for i in range(21)})
NAMED = {"type": "function", "name": "fly"}
AUTO: dict[str, Any] = {}
REQUIRED = {"tool_choice": "required"}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayRing]:
    model = make_tiny_model(tmp_path, markers=("<tool_call>", "</tool_call>"))
    async with a_gateway(model, tool_parser="hermes") as found:
        yield found


def body(path: str, function: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """A request with one function, in the form of that route."""
    if path == "/v1/responses":
        tool = {"type": "function", **function}
        return {"model": "tiny", "input": "hello", "tools": [tool], **asked}
    choice = asked.get("tool_choice")
    if isinstance(choice, dict):
        named = {"type": "function", "function": {"name": choice["name"]}}
        asked = {**asked, "tool_choice": named}
    tool = {"type": "function", "function": function}
    messages = [{"role": "user", "content": "hello"}]
    return {"model": "tiny", "messages": messages, "tools": [tool], **asked}


async def error_of(http: aiohttp.ClientSession, path: str, asked: Any) -> dict[str, Any]:
    async with http.post(path, json=asked) as response:
        answer = await response.json()
        assert response.status == 400, answer
    assert answer.keys() == {"error"}
    error = dict(answer["error"])
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("function", "asked", "param", "message"),
    [
        # What has no form of a function.
        ({"name": 5}, AUTO, "tools", "valid string"),
        ({"name": ""}, AUTO, "tools", "at least 1 character"),
        ({"name": "f", "parameters": "none"}, AUTO, "tools", "valid dictionary"),
        ({"name": "f", "parameters": {"type": "string"}}, REQUIRED, "tools[0]", "no object"),
        # What is chosen.
        ({"name": "f"}, {"tool_choice": NAMED}, "tool_choice", "names 'fly'"),
        ({"name": "f"}, {"tool_choice": "any"}, "tool_choice", ""),
        ({"name": "f"}, {"parallel_tool_calls": "no"}, "parallel_tool_calls", "valid boolean"),
        # What vLLM refuses to make a grammar of.
        ({"name": "f", "strict": True, "parameters": nested(200)}, AUTO, "tools", "vLLM's parser refuses the request"),
        # What the router refuses: for the template, and as a grammar.
        ({"name": "f", "parameters": nested(200)}, AUTO, "tools[0]", "nested"),
        ({"name": "f", "strict": True, "parameters": TOO_MANY}, AUTO, "tools", "repetitions"),
        ({"name": "f", "parameters": TOO_MANY}, REQUIRED, "tools", "repetitions"),
    ],
)  # fmt: skip
async def test_tools_that_are_refused(
    http: aiohttp.ClientSession,
    function: dict[str, Any],
    asked: dict[str, Any],
    param: str,
    message: str,
) -> None:
    for path in PATHS:
        for streams in (False, True):
            error = await error_of(http, path, {**body(path, function, asked), "stream": streams})
            assert error["param"] == param, error
            assert message in error["message"]


@pytest.mark.parametrize("asked", [{"parallel_tool_calls": False}, REQUIRED])
async def test_a_grammar_of_tools_that_an_engine_refuses(
    gateway: GatewayRing, http: aiohttp.ClientSession, asked: dict[str, Any]
) -> None:
    name = "json_schema" if asked is REQUIRED else "structural_tag"
    gateway.ring.decode.late_rejection = refused("cannot be compiled: no such type", name)
    for path in PATHS:
        function = {"name": "f", "parameters": schema({"q": {"type": "strange"}})}
        error = await error_of(http, path, body(path, function, asked))
        assert (error["param"], error["code"]) == ("tools", "bad_structured_output")
        assert "no such type" in error["message"]


async def test_on_a_lane(gateway: GatewayRing, sdk: Any) -> None:
    deep = {"type": "function", "name": "f", "strict": True, "parameters": nested(200)}
    async with sdk.responses.connect() as connection:
        client = LaneClient(connection)
        for more, param in (
            ({"tools": [{"type": "function", "name": 5}]}, "tools"),
            ({"tools": [{"type": "function", "name": "f"}], "tool_choice": NAMED}, "tool_choice"),
            ({"tools": [deep]}, "tools"),
        ):
            refusal = await client.refusal(user("hello"), **more)
            assert (refusal.status, refusal.error.param) == (400, param)
        await client.answer(user("hello"))
