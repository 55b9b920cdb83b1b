"""Conversations as people have them: parts, tools' results, what goes with the template."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from stream2llm.api.errors import UnsupportedError
from stream2llm.gateway.lanes.requests import CreateRequest
from stream2llm.gateway.response_items import messages_of
from tests.gateway_ring import GatewayRing

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"q": "x"}'}}
CALLED = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"q": "x"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "found"}


async def test_roles_parts_and_tool_results_are_rendered_as_by_grpc(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "there"}]
    await sdk.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "brief"},
            {"role": "user", "content": parts, "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "found"},
        ],
    )
    await sdk.responses.create(
        model="tiny",
        input=[
            {"role": "developer", "content": "brief"},
            {"role": "user", "content": [{**p, "type": "input_text"} for p in parts]},
            CALLED,
            OUTPUT,
        ],
    )
    chat, response = gateway.ring.prefill.records
    assert chat.sequence == response.sequence
    text = gateway.ring.router._parts.text.tokenizer.backend.decode(
        chat.sequence, skip_special_tokens=False
    )
    assert "hello there<|end|>" in text
    assert text.endswith("<|turn|>tool\nfound<|end|>\n<|turn|>assistant\n")
    assert '"name": "look"' in text


def test_calls_in_a_row_are_one_turn() -> None:
    said = {"role": "assistant", "content": "I look"}
    turns = messages_of([{"role": "user", "content": "a"}, said, CALLED, CALLED, OUTPUT, CALLED])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert [len(turn.get("tool_calls", ())) for turn in turns] == [0, 2, 0, 1]
    assert said == {"role": "assistant", "content": "I look"}


def test_reasoning_is_of_the_turn_that_it_prepared() -> None:
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    said = {"role": "assistant", "content": "I look"}
    turns = messages_of([thought, said, CALLED, OUTPUT, thought, CALLED])
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("assistant", "I look"),
        ("tool", "found"),
        ("assistant", None),
    ]
    assert [turn.get("reasoning") for turn in turns] == ["hm", None, "hm"]
    assert [len(turn.get("tool_calls", ())) for turn in turns] == [1, 0, 1]
    with pytest.raises(UnsupportedError, match="without its text"):
        messages_of([{"type": "reasoning", "summary": [], "encrypted_content": "x"}])


def test_a_lane_counts_the_characters_of_calls_and_reasoning_too() -> None:
    long = json.dumps({"q": "x" * 1000})
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": long}]}
    for item in ({**CALLED, "arguments": long}, thought):
        assert CreateRequest(input=[item, CALLED]).given().num_chars > 1000


async def test_variables_and_ends_of_the_template(
    gateway: GatewayRing, http: aiohttp.ClientSession
) -> None:
    ring = gateway.ring
    user: dict[str, Any] = {"role": "user", "content": "hello"}
    begun = {"role": "assistant", "content": "I am"}
    start = "<|turn|>user\nhello<|end|>\n"
    for messages, more, written in (
        (
            [user],
            {"chat_template_kwargs": {"enable_thinking": False}},
            f"{start}<|turn|>assistant\n<think></think>",
        ),
        ([user], {"add_generation_prompt": False}, start),
        ([user, begun], {"continue_final_message": True}, f"{start}<|turn|>assistant\nI am"),
    ):
        body = {"model": "tiny", "messages": messages, **more}
        async with http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
        assert ring.record.sequence == ring.encode_written(written)
    both = {"continue_final_message": True, "add_generation_prompt": True}
    body = {"model": "tiny", "messages": [user, begun], **both}
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 400
