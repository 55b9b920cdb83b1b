"""Several choices: one prompt first, then the others from its cache, and all in one answer."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from stream2llm.api.errors import OverloadedError
from tests.gateway_ring import GatewayRing
from tests.router_ring import soon

HELLO: Any = [{"role": "user", "content": "hello"}]


async def test_choices_of_a_chat(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "n": 3, "seed": 7, "max_tokens": 4}
    done = await sdk.chat.completions.create(**asked)
    stream = await sdk.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    *chunks, usage = [chunk async for chunk in stream]
    texts = ["", "", ""]
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert [choice.message.content for choice in done.choices] == texts
    assert gateway.ring.metric("stream2llm_sessions_total", outcome="ok") == 2
    records = gateway.ring.prefill.records
    assert [sorted(r.open.sampling.seed for r in each) for each in (records[:3], records[3:])] == [
        [7, 8, 9],
        [7, 8, 9],
    ]
    assert len({tuple(record.sequence) for record in records}) == 1
    num_prompt = len(records[0].sequence)
    for found in (done.usage, usage.usage):
        assert (found.prompt_tokens, found.completion_tokens) == (num_prompt, 12)
        assert found.total_tokens == num_prompt + 12
    ends = [c.choices[0].index for c in chunks if c.choices[0].finish_reason]
    assert sorted(ends) == [0, 1, 2]


async def test_choices_of_a_completion(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    done = await sdk.completions.create(model="tiny", prompt="once", n=2, max_tokens=3, logprobs=0)
    assert [choice.index for choice in done.choices] == [0, 1]
    assert [choice.logprobs.text_offset[0] for choice in done.choices] == [0, 0]
    assert done.usage.completion_tokens == 6


async def test_the_others_wait_for_the_first_token(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    prefill = gateway.ring.prefill
    prefill.may_sample.clear()
    asking = asyncio.create_task(
        sdk.chat.completions.create(model="tiny", messages=HELLO, n=2, max_tokens=2)
    )
    await soon(prefill.session_came.wait())
    await soon(prefill.records[0].sealed.wait())
    assert len(prefill.records) == 1
    prefill.may_sample.set()
    assert len((await soon(asking)).choices) == 2
    assert len(prefill.records) == 2


async def test_the_failure_of_one_ends_all(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    prefill = gateway.ring.prefill
    prefill.may_sample.clear()
    asking = asyncio.create_task(sdk.chat.completions.create(model="tiny", messages=HELLO, n=3))
    await soon(prefill.session_came.wait())
    await soon(prefill.records[0].sealed.wait())
    prefill.failures["open"] = OverloadedError("no room")
    prefill.may_sample.set()
    with pytest.raises(openai.RateLimitError):
        await soon(asking)
    await gateway.ring.nothing_is_open()


async def test_how_many_there_may_be(http: aiohttp.ClientSession) -> None:
    for path, body in (
        ("chat/completions", {"messages": HELLO, "n": 17}),
        ("chat/completions", {"messages": HELLO, "n": 0}),
        ("completions", {"prompt": "a", "n": 17}),
        ("responses", {"input": "a", "n": 2}),
    ):
        async with http.post(f"/v1/{path}", json=body) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "n"
