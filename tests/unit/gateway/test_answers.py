"""OpenAI's own SDK gets the answers that the router gives, on every route and in both ways."""

from __future__ import annotations

import asyncio

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.gateway_ring import GatewayRing

HELLO = [{"role": "user", "content": "hello"}]


def chat_answer(gateway: GatewayRing, num_tokens: int = 5) -> str:
    """The text that the fake workers give for HELLO."""
    ring = gateway.ring
    prompt = ring.encode_written("<|turn|>user\nhello<|end|>\n<|turn|>assistant\n")
    return ring.decode_text(ring.brain.answer(prompt, num_tokens))


async def test_a_chat_completion(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    done = await sdk.chat.completions.create(
        model="tiny", messages=HELLO, max_completion_tokens=5, temperature=0
    )
    assert done.choices[0].message.content == chat_answer(gateway)
    assert done.choices[0].finish_reason == "length"
    assert done.model == "tiny"
    assert done.usage.completion_tokens == 5
    assert done.usage.prompt_tokens == len(gateway.ring.record.sequence)
    assert done.usage.prompt_tokens_details.cached_tokens == 0


async def test_a_chat_completion_as_a_stream(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    *texts, last, usage = chunks
    assert texts[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content for c in texts) == chat_answer(gateway)
    assert last.choices[0].finish_reason == "length"
    assert (usage.choices, usage.usage.completion_tokens) == ([], 5)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_synchronous_sdk_gets_the_same(gateway: GatewayRing) -> None:
    def ask() -> str:
        with OpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as client:
            done = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5)
            stream = client.chat.completions.create(
                model="tiny", messages=HELLO, max_tokens=5, stream=True
            )
            streamed = "".join(c.choices[0].delta.content or "" for c in stream)
        assert streamed == done.choices[0].message.content
        return streamed

    assert await asyncio.to_thread(ask) == chat_answer(gateway)


async def test_completions_of_text_and_of_token_ids(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    ring = gateway.ring
    ids = [int(token_id) for token_id in ring.encode("once upon a time")]
    expected = ring.decode_text(ring.brain.answer(ids, 4))
    for prompt in ("once upon a time", ids, ["once upon a time"], [ids]):
        done = await sdk.completions.create(model="tiny", prompt=prompt, max_tokens=4)
        assert done.choices[0].text == expected
        assert done.usage.prompt_tokens == len(ids)
    stream = await sdk.completions.create(
        model="tiny", prompt=ids, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    *chunks, usage = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "length"
    assert usage.usage.total_tokens == len(ids) + 4


async def test_a_response(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    response = await sdk.responses.create(model="tiny", input="hello", max_output_tokens=5)
    assert response.output_text == chat_answer(gateway)
    assert (response.status, response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert response.usage.output_tokens == 5


async def test_a_response_as_its_events(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    async with sdk.responses.stream(model="tiny", input=HELLO) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    expected = chat_answer(gateway, gateway.ring.brain.num_tokens)
    assert final.output_text == expected
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == expected
    others = [event.type.removeprefix("response.") for event in events if "delta" not in event.type]
    assert others == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_instructions_and_items_are_a_conversation(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    first = await sdk.responses.create(model="tiny", input="hello", max_output_tokens=3)
    await sdk.responses.create(
        model="tiny",
        instructions="be brief",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            *(item.model_dump() for item in first.output),
            {"role": "user", "content": "more"},
        ],
        max_output_tokens=3,
    )
    written = (
        "<|turn|>system\nbe brief<|end|>\n<|turn|>user\nhello<|end|>\n"
        f"<|turn|>assistant\n{first.output_text.strip()}<|end|>\n"
        "<|turn|>user\nmore<|end|>\n<|turn|>assistant\n"
    )
    assert gateway.ring.record.sequence == gateway.ring.encode_written(written)


async def test_sampling_parameters_reach_the_workers(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    await sdk.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=5,
        temperature=0.5,
        top_p=0.25,
        seed=7,
        presence_penalty=1.5,
        frequency_penalty=-0.5,
        extra_body={
            "top_k": 3,
            "repetition_penalty": 1.25,
            "stop_token_ids": [4, 5],
            "ignore_eos": True,
        },
    )
    sampling = gateway.ring.record.open.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (5, 0.5, 0.25)
    assert (sampling.top_k, sampling.seed, sampling.repetition_penalty) == (3, 7, 1.25)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.5, -0.5)
    assert (list(sampling.stop_token_ids), sampling.ignore_eos) == ([4, 5], True)


@pytest.mark.parametrize("as_list", [False, True])
async def test_a_stop_string_ends_the_answer(
    gateway: GatewayRing, sdk: AsyncOpenAI, as_list: bool
) -> None:
    whole = chat_answer(gateway, 30)
    stop = next(c for c in whole[3:] if c.isascii() and c.isprintable() and c not in whole[:3])
    done = await sdk.chat.completions.create(
        model="tiny", messages=HELLO, stop=[stop] if as_list else stop
    )
    assert done.choices[0].finish_reason == "stop"
    assert done.choices[0].message.content == whole[: whole.index(stop)]


async def test_logprobs_of_a_chat_and_of_a_completion_and_of_a_response(sdk: AsyncOpenAI) -> None:
    chat = await sdk.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=0
    )
    entries = chat.choices[0].logprobs.content
    assert [entry.logprob for entry in entries] == [-0.5] * 3
    completion = await sdk.completions.create(model="tiny", prompt="a", max_tokens=3, logprobs=0)
    found = completion.choices[0].logprobs
    assert found.token_logprobs == [-0.5] * 3
    assert found.text_offset == [0, len(found.tokens[0]), len(found.tokens[0] + found.tokens[1])]
    response = await sdk.responses.create(
        model="tiny", input="hello", max_output_tokens=3, include=["message.output_text.logprobs"]
    )
    assert [each.logprob for each in response.output[0].content[0].logprobs] == [-0.5] * 3


async def test_models(sdk: AsyncOpenAI) -> None:
    assert [model.id async for model in await sdk.models.list()] == ["tiny"]
    assert (await sdk.models.retrieve("tiny")).owned_by == "stream2llm"
