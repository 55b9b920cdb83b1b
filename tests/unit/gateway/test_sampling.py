"""Parameters of vLLM's API and OpenAI's `logit_bias`, on each route."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from tests.gateway_ring import GatewayRing

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
}


async def posted(http: aiohttp.ClientSession, path: str, status: int = 200, **more: Any) -> Any:
    async with http.post(path, json={"model": "tiny", **ROUTES[path], **more}) as response:
        assert response.status == status, await response.text()
        return await response.json()


@pytest.mark.parametrize("path", ROUTES)
async def test_they_reach_the_workers(
    gateway: GatewayRing, http: aiohttp.ClientSession, path: str
) -> None:
    await posted(
        http,
        path,
        min_tokens=3,
        min_p=0.25,
        logit_bias={"5": -100, "7": 1.5},
        bad_words=["fox"],
        skip_special_tokens=False,
        truncate_prompt_tokens=2,
    )
    ring = gateway.ring
    sampling = ring.record.open.sampling
    assert (sampling.min_tokens, sampling.min_p) == (3, 0.25)
    assert dict(sampling.logit_bias) == {5: -100, 7: 1.5}
    words = [list(each.token_ids.ids) for each in sampling.bad_words]
    assert ring.encode("fox") in words
    assert len(ring.record.sequence) == 2


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"logit_bias": {"fox": 1}}, "logit_bias"),
    ({"logit_bias": {"05": 1}}, "logit_bias"),
    ({"logit_bias": {"9999999999": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"min_p": 2}, "min_p"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"include_stop_str_in_output": 1}, "include_stop_str_in_output"),
]


@pytest.mark.parametrize("path", ROUTES)
async def test_what_they_cannot_be_is_refused_by_name(
    http: aiohttp.ClientSession, path: str
) -> None:
    for more, param in REFUSED:
        error = (await posted(http, path, 400, **more))["error"]
        assert error["param"] == param
        if param == "logit_bias":
            assert next(iter(more["logit_bias"])) in error["message"]


async def test_a_stop_string_may_be_part_of_the_answer(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    ring = gateway.ring
    ring.brain.script = ring.encode("the quick fox")
    for includes, expected in ((True, "the quick"), (False, "the ")):
        done = await sdk.completions.create(
            model="tiny",
            prompt="hello",
            stop="quick",
            extra_body={"include_stop_str_in_output": includes},
        )
        assert done.choices[0].text == expected


async def test_bytes_of_logprobs_are_those_of_the_tokens(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    """The tokens of a character beyond ASCII have bytes of their own, on each route that has any."""
    ring = gateway.ring
    ring.brain.script = ring.encode("a € b")
    said: dict[str, Any] = {"model": "tiny"}
    chat = await sdk.chat.completions.create(
        **said, messages=[{"role": "user", "content": "hello"}], logprobs=True
    )
    response = await sdk.responses.create(
        **said, input="hello", include=["message.output_text.logprobs"]
    )
    entries = [*chat.choices[0].logprobs.content], [*response.output[0].content[0].logprobs]
    for found in entries:
        assert any("\ufffd" in entry.token for entry in found)
        written = bytes(byte for entry in found for byte in entry.bytes)
        assert written.decode().startswith("a € b")
