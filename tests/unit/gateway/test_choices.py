"""Several choices: one prompt first, then the others from its cache, and all in one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from stream2llm.api.errors import InternalError, UnavailableError
from stream2llm.api.events import Event, Finished, TokenDelta
from stream2llm.api.token_step import FinishReason
from stream2llm.gateway.choices import choices
from tests.gateway_ring import GatewayRing
from tests.router_ring import soon

HELLO: Any = [{"role": "user", "content": "hello"}]
DELTA = TokenDelta("a", (1,))
FINISHED = Finished(FinishReason.LENGTH)


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


async def test_the_failure_of_one_ends_all(make_gateway: Any) -> None:
    gateway: GatewayRing = await make_gateway(max_open_sessions=2)
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as sdk:
        with pytest.raises(openai.RateLimitError):
            await sdk.chat.completions.create(
                model="tiny", messages=HELLO, n=3, extra_body={"ignore_eos": True}
            )
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


# -- the stream of events -----------------------------------------------------------------


class Answers:
    """Answers of the given events, and which are under way; None: nothing more comes."""

    def __init__(self, *answers: list[Event | Exception | None]) -> None:
        self._answers = answers
        self.open: set[int] = set()

    async def ask(self, index: int) -> AsyncGenerator[Event, None]:
        self.open.add(index)
        try:
            for event in self._answers[index]:
                if event is None:
                    await asyncio.Event().wait()
                elif isinstance(event, Exception):
                    raise event
                else:
                    yield event
        finally:
            self.open.discard(index)


async def test_an_answer_without_tokens_lets_the_others_begin() -> None:
    answers = Answers([FINISHED], [DELTA, FINISHED])
    seen = [item async for item in choices(answers.ask, 2)]
    assert seen == [(0, FINISHED), (1, DELTA), (1, FINISHED)]


@pytest.mark.parametrize(
    ("last", "error"),
    [([UnavailableError("lost")], UnavailableError), ([], InternalError)],
    ids=["an error", "no end"],
)
async def test_what_ends_one_is_raised_and_the_others_end(
    last: list[Any], error: type[Exception]
) -> None:
    answers = Answers([DELTA, None], [DELTA, *last])
    with pytest.raises(error):
        async for _ in choices(answers.ask, 2):
            pass
    assert not answers.open


async def test_a_reader_that_leaves_ends_all() -> None:
    answers = Answers([DELTA, None], [DELTA, None])
    async with aclosing(choices(answers.ask, 2)) as events:
        async for index, _ in events:
            if index == 1:
                break
        assert answers.open == {0, 1}
    assert not answers.open
