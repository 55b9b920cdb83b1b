"""Clients that leave, drains, changing routers, health, metrics, and curl."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from fastapi import APIRouter
from openai import AsyncOpenAI

from examples.demo.over_http import again, ask_over_http, curl_command
from examples.demo.view import LinesView
from stream2llm.api.errors import InternalError, UnavailableError
from stream2llm.cluster.config import ClusterConfig
from stream2llm.gateway.connections import MAX_HEAD_BYTES, BoundedProtocol
from tests.command_lines import parse
from tests.gateway_ring import GatewayRing
from tests.polling import eventually
from tests.router_ring import a_ring, soon

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "tiny", "messages": HELLO}
REQUESTS = "stream2llm_gateway_requests_total"
IN_FLIGHT = "stream2llm_gateway_requests_in_flight"


async def test_a_client_that_leaves_before_the_first_token_ends_its_session(
    gateway: GatewayRing,
) -> None:
    gateway.ring.prefill.may_sample.clear()
    for streams in (False, True):
        gateway.ring.prefill.session_came.clear()
        async with gateway.http() as http:
            asked = asyncio.create_task(
                http.post("/v1/chat/completions", json={**CHAT, "stream": streams}).__aenter__()
            )
            await soon(gateway.ring.prefill.session_came.wait())
            await soon(gateway.ring.record.sealed.wait())
            asked.cancel()
            (answer,) = await asyncio.gather(asked, return_exceptions=True)
            if isinstance(answer, aiohttp.ClientResponse):  # a stream may have begun
                answer.close()
        await soon(gateway.ring.record.ended.wait())
        await gateway.ring.nothing_is_open()


async def test_a_client_that_leaves_in_mid_answer_ends_its_session(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    gateway.ring.decode.hold_after_steps = 2
    stream = await sdk.chat.completions.create(**CHAT, stream=True)
    await anext(aiter(stream))

    async def is_held() -> bool:
        return not gateway.ring.decode.may_step.is_set()

    await eventually(is_held, bool)
    await stream.close()
    await soon(gateway.ring.decode.cancelled.wait())
    await gateway.ring.nothing_is_open()


async def test_a_failure_in_mid_answer_reaches_the_client(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    gateway.ring.decode.late_rejection = InternalError("the engine is broken")
    stream = await sdk.chat.completions.create(**CHAT, stream=True)
    with pytest.raises(openai.APIError, match="the engine is broken"):
        async for _ in stream:
            pass
    with pytest.raises(openai.InternalServerError, match="the engine is broken"):
        await sdk.chat.completions.create(**CHAT)
    events = [
        event async for event in await sdk.responses.create(model="tiny", input="a", stream=True)
    ]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "the engine is broken"


async def test_a_drain_lets_answers_end_and_refuses_new_ones(
    gateway: GatewayRing, http: aiohttp.ClientSession, sdk: AsyncOpenAI
) -> None:
    gateway.ring.decode.hold_after_steps = 2
    stream = await sdk.chat.completions.create(**CHAT, stream=True)
    await anext(aiter(stream))
    draining = asyncio.create_task(gateway.gateway.drain(5.0))
    await asyncio.sleep(0)
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == HTTPStatus.SERVICE_UNAVAILABLE
        assert (await response.json())["error"]["code"] == "draining"
    async with http.get("/health") as response:
        assert response.status == HTTPStatus.OK
    assert not draining.done()
    gateway.ring.decode.hold_after_steps = None
    gateway.ring.decode.may_step.set()
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "stop"
    await soon(draining)
    assert (await gateway.gateway.status()).is_draining


async def test_a_stop_ends_what_a_drain_has_left(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    gateway.ring.decode.hold_after_steps = 2
    stream = await sdk.chat.completions.create(**CHAT, stream=True)
    await anext(aiter(stream))
    await gateway.gateway.drain(0.01)
    await soon(gateway.gateway.stop())
    with pytest.raises((openai.APIError, openai.APIConnectionError)):
        async for _ in stream:
            pass


async def test_answers_go_on_at_the_router_that_they_began_at(
    gateway: GatewayRing, http: aiohttp.ClientSession, sdk: AsyncOpenAI
) -> None:
    """A view without routers, in the middle of an answer."""
    gateway.ring.decode.hold_after_steps = 2
    stream = await sdk.chat.completions.create(**CHAT, stream=True)
    await anext(aiter(stream))
    gateway.show()
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == HTTPStatus.SERVICE_UNAVAILABLE
        assert (await response.json())["error"]["code"] == "no_router"
    gateway.ring.decode.hold_after_steps = None
    gateway.ring.decode.may_step.set()
    assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "stop"
    gateway.show(gateway.ring.address.grpc_address)
    assert (await sdk.chat.completions.create(**CHAT)).choices[0].finish_reason == "stop"


async def test_a_whole_answer_survives_the_loss_of_its_router(
    gateway: GatewayRing, tiny_model: Path, sdk: AsyncOpenAI
) -> None:
    expected = (await sdk.chat.completions.create(**CHAT)).choices[0].message.content
    async with a_ring(tiny_model) as other:
        rings = (gateway.ring, other)
        for ring in rings:
            ring.prefill.session_came.clear()
            ring.prefill.may_sample.clear()
        gateway.show(*(ring.address.grpc_address for ring in rings))
        asked = asyncio.create_task(sdk.chat.completions.create(**CHAT))
        came = [asyncio.create_task(ring.prefill.session_came.wait()) for ring in rings]
        await soon(asyncio.wait(came, return_when=asyncio.FIRST_COMPLETED))
        lost = next(ring for ring in rings if ring.prefill.session_came.is_set())
        await soon(lost.record.sealed.wait())
        await lost.lose_router()
        for ring in rings:
            ring.prefill.may_sample.set()
        assert (await soon(asked)).choices[0].message.content == expected
        await asyncio.gather(*came)


async def test_health_says_whether_requests_can_be_answered(
    gateway: GatewayRing, http: aiohttp.ClientSession
) -> None:
    for routers, status in (((), 503), ((gateway.ring.address.grpc_address,), 200)):
        gateway.show(*routers)
        async with http.get("/health") as response:
            assert response.status == status


async def test_requests_are_counted_by_route_and_status(
    gateway: GatewayRing, http: aiohttp.ClientSession
) -> None:
    for body in (CHAT, {**CHAT, "n": 0}, {**CHAT, "stream": True}):
        async with http.post("/v1/chat/completions", json=body) as response:
            await response.read()
    async with http.get("/v1/models/no/such") as response:
        assert response.status == HTTPStatus.NOT_FOUND
    async with http.get("/nothing/here") as response:
        assert response.status == HTTPStatus.NOT_FOUND
    async with http.get("/metrics") as response:
        page = await response.text()
    assert f"{IN_FLIGHT} 1.0" in page  # this one
    for route, status, count in (
        ("/v1/chat/completions", "200", 2),
        ("/v1/chat/completions", "400", 1),
        ("/v1/models/{name:path}", "404", 1),
        ("(unknown)", "404", 1),
    ):
        assert gateway.metric(REQUESTS, route=route, status=status) == count, route
    assert gateway.metric(IN_FLIGHT) == 0


async def test_no_page_of_another_origin_may_read_an_answer(http: aiohttp.ClientSession) -> None:
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    async with http.options("/v1/chat/completions", headers=headers) as response:
        assert response.status == HTTPStatus.METHOD_NOT_ALLOWED
    async with http.get("/v1/models", headers=headers) as response:
        names = {name.lower() for name in response.headers}
    assert not any(name.startswith("access-control") for name in names)


async def test_more_routes_are_served_beside_its_own(make_gateway: Callable[..., Any]) -> None:
    more = APIRouter()

    @more.get("/v1/more")
    async def answer() -> dict[str, str]:
        return {"more": "yes"}

    gateway: GatewayRing = await make_gateway(more)
    async with gateway.http() as http, http.get("/v1/more") as response:
        assert await response.json() == {"more": "yes"}


@pytest.mark.parametrize("begin", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"])
async def test_a_connection_without_a_whole_head_ends(
    gateway: GatewayRing, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_limit_s", 0.05)
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(begin)
    with suppress(ConnectionResetError):
        assert await soon(reader.read()) == b""
    writer.close()


async def test_a_head_without_end_ends_its_connection(gateway: GatewayRing) -> None:
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * (4 * MAX_HEAD_BYTES))
    with suppress(ConnectionResetError):
        assert await soon(reader.read()) == b""
    writer.close()


async def test_a_connection_serves_one_request_after_the_other(
    gateway: GatewayRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is there has no deadline any more, however long the answer takes."""
    monkeypatch.setattr(BoundedProtocol, "head_limit_s", 0.05)
    gateway.ring.prefill.may_sample.clear()
    connector = aiohttp.TCPConnector(limit=1)
    async with gateway.http(connector=connector) as http:
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT).__aenter__())
        await soon(gateway.ring.prefill.session_came.wait())
        await asyncio.sleep(0.1)  # twice the deadline, which must not strike
        gateway.ring.prefill.may_sample.set()
        assert (await soon(asked)).status == HTTPStatus.OK
        await (await asked).read()
        async with http.post("/v1/chat/completions", json=CHAT) as response:
            assert response.status == HTTPStatus.OK


async def test_curl_streams_an_answer(gateway: GatewayRing) -> None:
    curl = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--no-buffer", f"{gateway.base_url}/chat/completions"),
        *("--noproxy", "*", "--header", "Content-Type: application/json"),
        *("--data", json.dumps({**CHAT, "stream": True, "max_tokens": 3})),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await soon(curl.communicate())
    *events, done, _ = output.decode().split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_the_demo_s_last_lines_start_a_cluster_and_ask_its_gateway(
    gateway: GatewayRing,
) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    config = ClusterConfig.model_validate(
        {"served_model_name": "tiny", "gateway": {"host": host, "port": int(port)}}
    )
    title, up, curl = again(config).splitlines()
    assert title == "Again, in two terminals:"
    program, *words = shlex.split(up)
    assert program == ".venv/bin/stream2llm"
    parse(words)
    asked = await asyncio.create_subprocess_exec(
        *shlex.split(curl), "--noproxy", "*", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await soon(asked.communicate())
    assert json.loads(output)["choices"][0]["message"]["content"]


async def test_the_demo_shows_its_command_and_what_comes_back(
    gateway: GatewayRing, capsys: pytest.CaptureFixture[str]
) -> None:
    await asyncio.to_thread(ask_over_http, gateway.base_url, "tiny", LinesView())
    title, command, answer = capsys.readouterr().out.splitlines()
    assert title == "OpenAI's API, by curl:"
    assert shlex.split(command) == curl_command(gateway.base_url, "tiny")
    assert json.loads(answer)["choices"][0]["finish_reason"] == "length"
    with pytest.raises(UnavailableError, match="not served here"):
        await asyncio.to_thread(ask_over_http, gateway.base_url, "other", LinesView())
