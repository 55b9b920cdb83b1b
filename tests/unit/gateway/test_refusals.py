"""What cannot be honoured is refused by name, in OpenAI's form, with a status that is right."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from stream2llm.api.errors import (
    InvalidRequestError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
    UnsupportedError,
)
from stream2llm.gateway import parameters
from stream2llm.gateway.errors import answered, body_of, headers_of
from stream2llm.gateway.requests import ChatRequest, CompletionRequest
from stream2llm.gateway.response_requests import ResponsesRequest
from tests.gateway_ring import GatewayRing

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "tiny", "messages": HELLO}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "hello"},
    "/v1/responses": {"model": "tiny", "input": "hello"},
}
REQUESTS = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
}
# A value of each kind that is not neutral.
ASKED: dict[str, Any] = {"n": 2}


async def refusal(
    http: aiohttp.ClientSession, path: str, body: Any, status: int = 400
) -> dict[str, Any]:
    async with http.post(path, json=body) as response:
        answer = await response.json()
        assert response.status == status, answer
    assert answer.keys() == {"error"}
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    return dict(answer["error"])


# -- parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROUTES)
def test_what_is_not_honoured_is_refused_by_name_and_neutral_values_pass(path: str) -> None:
    kind = REQUESTS[path]
    for name, neutral in kind.not_honoured.items():
        for value in (None, *neutral):
            kind(**ROUTES[path], **{name: value}).check_others()
        with pytest.raises(UnsupportedError) as caught:
            kind(**ROUTES[path], **{name: ASKED.get(name, "something")}).check_others()
        assert caught.value.field == name


@pytest.mark.parametrize("path", ROUTES)
def test_no_parameter_is_both_honoured_and_refused(path: str) -> None:
    kind = REQUESTS[path]
    honoured = kind.model_fields.keys()
    assert not honoured & kind.not_honoured.keys()
    assert not parameters.WITHOUT_EFFECT & kind.not_honoured.keys()


def test_one_is_not_true() -> None:
    with pytest.raises(UnsupportedError):
        parameters.check_others({"best_of": True}, parameters.CHAT)


async def test_refusals_name_the_parameter(http: aiohttp.ClientSession) -> None:
    for path, body in ROUTES.items():
        for name, value, code in (
            ("prompt_logprobs", 1, "unsupported_parameter"),
            ("colour", "red", "unknown_parameter"),
            ("temperature", "hot", "invalid_request"),
            ("temperature", 3, "bad_sampling"),
            ("stop", [""], "bad_sampling"),
        ):
            error = await refusal(http, path, {**body, name: value})
            assert (error["param"], error["code"]) == (name, code), path


async def test_a_router_s_refusal_has_the_name_of_the_route(http: aiohttp.ClientSession) -> None:
    for path, name in (
        ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ):
        assert (await refusal(http, path, {**ROUTES[path], name: 0}))["param"] == name


async def test_a_bad_chat_is_refused(http: aiohttp.ClientSession) -> None:
    image = [{"role": "user", "content": [{"type": "image_url"}]}]
    for more, param in (
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": image}, "messages[0].content[0]"),
    ):
        assert (await refusal(http, "/v1/chat/completions", {**CHAT, **more}))["param"] == param


async def test_a_bad_response_is_refused(http: aiohttp.ClientSession) -> None:
    reference = {"type": "item_reference", "id": "1"}
    image = {"role": "user", "content": [{"type": "input_image"}]}
    for more, param in (
        ({"input": [reference]}, "input[0]"),
        ({"input": [image]}, "input[0].content[0]"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"service_tier": "flex"}, "service_tier"),
    ):
        body = {**ROUTES["/v1/responses"], **more}
        assert (await refusal(http, "/v1/responses", body))["param"] == param


async def test_several_prompts_are_refused(http: aiohttp.ClientSession) -> None:
    error = await refusal(http, "/v1/completions", {"model": "tiny", "prompt": ["a", "b"]})
    assert error["param"] == "prompt"


# -- bodies and paths ---------------------------------------------------------------------


async def test_what_is_no_json_is_refused(http: aiohttp.ClientSession) -> None:
    for body in (b"{", b"", b"\xff\xfe", b"[1]", b'"text"', b"[" * 100_000):
        headers = {"Content-Type": "application/json"}
        async with http.post("/v1/chat/completions", data=body, headers=headers) as response:
            assert response.status == HTTPStatus.BAD_REQUEST
            assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_half_a_surrogate_pair_is_refused_wherever_it_stands(
    http: aiohttp.ClientSession,
) -> None:
    half = "\ud800"
    for body in (
        {**CHAT, half: 1},
        {**CHAT, "messages": [{"role": "user", "content": half}]},
        {**CHAT, "messages": [{"role": half, "content": "hello"}]},
        {**CHAT, "model": half},
        {**CHAT, "stop": half},
        {**CHAT, "logit_bias": {half: 1}},
        {**CHAT, "response_format": {half: 1}},
        {**CHAT, "tools": [{"type": "function", "function": {"name": half}}]},
        {**CHAT, "tools": [{"type": "function", half: {}}], "tool_choice": "none"},
        {**CHAT, "chat_template_kwargs": {"a": half}},
    ):
        await refusal(http, "/v1/chat/completions", body)
    named = {"type": "json_schema", "name": half, "schema": {}}
    tool = {"type": "function", "name": "f", "description": half}
    for more in (
        {"input": half},
        {"instructions": half},
        {"metadata": {"a": half}},
        {"text": {"format": named}},
        {"tools": [tool], "tool_choice": "none"},
        {"structured_outputs": {"choice": [half]}},
    ):
        await refusal(http, "/v1/responses", {**ROUTES["/v1/responses"], **more})


async def test_an_unknown_path_and_a_wrong_method(http: aiohttp.ClientSession) -> None:
    assert "is not served here" in (await refusal(http, "/v1/embeddings", {}, 404))["message"]
    async with http.get("/v1/chat/completions") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert (await response.json())["error"]["message"].startswith("GET /v1/chat")


async def test_a_body_beyond_the_limit_is_refused_before_it_is_read(
    make_gateway: Callable[..., Any],
) -> None:
    gateway: GatewayRing = await make_gateway(max_message_bytes=1 << 16)
    async with gateway.http() as http:
        long = {**CHAT, "messages": [{"role": "user", "content": "a" * (1 << 17)}]}
        assert (await refusal(http, "/v1/chat/completions", long, 413))["code"] == (
            "message_too_large"
        )
        async with http.post("/v1/chat/completions", json=CHAT) as response:
            assert response.status == HTTPStatus.OK


# -- from the router ----------------------------------------------------------------------


async def test_the_sdk_raises_its_own_errors(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await sdk.chat.completions.create(model="other", messages=HELLO)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("other")
    with pytest.raises(openai.BadRequestError) as too_long:
        await sdk.completions.create(model="tiny", prompt=[5] * 2000, stream=True)
    assert too_long.value.code == "context_length_exceeded"


async def test_overload_and_loss_say_when_to_try_again(make_gateway: Callable[..., Any]) -> None:
    gateway: GatewayRing = await make_gateway(max_open_sessions=1)
    gateway.ring.prefill.may_sample.clear()
    async with (
        gateway.http() as http,
        AsyncOpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as sdk,
    ):
        stream = await sdk.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        async with http.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
            assert response.status == HTTPStatus.TOO_MANY_REQUESTS
            assert int(response.headers["Retry-After"]) >= 1
        with pytest.raises(openai.RateLimitError):
            await sdk.responses.create(model="tiny", input="hello")
        await stream.close()
        await gateway.ring.nothing_is_open()
        gateway.ring.show()  # no workers
        async with http.post("/v1/completions", json=ROUTES["/v1/completions"]) as response:
            assert response.status == HTTPStatus.SERVICE_UNAVAILABLE
            assert int(response.headers["Retry-After"]) >= 1


def test_every_error_of_ours_has_a_status_and_openai_s_form() -> None:
    for kind in Stream2LLMError.__subclasses__():
        error = kind("why", field="chat.messages[2].content")
        assert 400 <= answered(error).status < 600
        assert body_of(error)["error"]["param"] == "messages[2].content"
    assert headers_of(OverloadedError("full", retry_after_s=1.2)) == {"Retry-After": "2"}
    assert headers_of(UnavailableError("lost")) == {"Retry-After": "1"}
    assert body_of(InvalidRequestError("why"))["error"]["param"] is None
    never = OverloadedError("the message is too large", reason="MESSAGE_TOO_LARGE")
    never.retry_after_s = None
    assert answered(never).status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
