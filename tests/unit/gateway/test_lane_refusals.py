"""What a WebSocket refuses: requests by name, callers and pages of other sites, and longer use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import websockets
from openai import AsyncOpenAI

from stream2llm.gateway.lanes.routes import LanesRoom, RoomLimits, lanes_routes
from stream2llm.gateway.lanes.state import LaneLimits
from stream2llm.gateway.model_tokenizer import SharedTokenizer
from stream2llm.serving.system.clock import SystemClock
from tests.credentials import Keys
from tests.gateway_ring import GatewayRing
from tests.lane_client import LaneClient, document, user
from tests.router_ring import soon


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"conversation": "conv_1"}, "unsupported_parameter", "conversation"),
        ({"background": True}, "unsupported_parameter", "background"),
        # Without a parser.
        ({"tools": [{"type": "function", "name": "f"}]}, "unsupported_parameter", "tool_choice"),
        ({"tool_choice": "required"}, "invalid_request", "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "invalid_request", "tool_choice"),
        ({"colour": "red"}, "unknown_parameter", "colour"),
        ({"previous_response_id": "resp_0"}, "previous_response_not_found", None),
        ({"temperature": 9.0}, "bad_sampling", "temperature"),
        ({"temperature": "hot"}, "invalid_request", "temperature"),
        ({"model": "other"}, "model_not_found", "model"),
        ({"input": [{"type": "reasoning"}]}, "unsupported_parameter", "input[0]"),
        ({"input": [document(None, "d")]}, "unknown_document", "input"),
        ({"input": [document(None)]}, "invalid_request", "input"),
        ({"input": [{**user("a"), "stream2llm": {"doc": 1}}]}, "invalid_request", "input"),
        ({"input": []}, "bad_chat", "input"),
        ({"input": "long " * 2000}, "context_length_exceeded", None),
        ({"stream_id": 7}, "invalid_request", "stream_id"),
        ({"stream2llm": {"order": "stable"}}, "invalid_request", "stream2llm"),
        ({"type": "response.delete"}, "invalid_request", "type"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    sdk: AsyncOpenAI, fields: dict[str, Any], code: str, param: str | None
) -> None:
    async with sdk.responses.connect() as connection:
        client = LaneClient(connection)
        refused = await client.refusal(**{"input": [user("hello")], **fields})
        assert refused.error.code == code, refused
        assert param is None or refused.error.param == param
        assert 400 <= refused.status < 500
        # The connection goes on.
        await client.answer(user("hello"), max_output_tokens=2)


async def test_what_is_no_event_is_refused(sdk: AsyncOpenAI) -> None:
    async with sdk.responses.connect() as connection:
        for text in ("{", "[]", '"text"'):
            await connection.send_raw(text)
            event = await connection.recv()
            assert (event.type, event.error.type) == ("error", "invalid_request_error")


async def test_steering_is_refused_with_its_input(sdk: AsyncOpenAI) -> None:
    async with sdk.responses.connect() as connection:
        await connection.response.steer(previous_response_id="resp_1", input="more")
        event = await connection.recv()
    assert event.type == "response.steer.failed"
    assert event.error.code == "steering_not_supported"
    assert event.steer.input == "more"


async def test_a_caller_without_a_key_is_refused_at_the_handshake(
    make_gateway: Any, keys: Keys
) -> None:
    key = keys.create("a")
    gateway = await make_gateway(security=keys.security())
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="wrong", max_retries=0) as sdk:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await sdk.responses.connect().enter()
        assert refused.value.response.status_code == 401
        async with sdk.with_options(api_key=key).responses.connect() as connection:
            await LaneClient(connection).answer(user("hello"), max_output_tokens=2)


async def test_pages_of_other_sites_are_refused(gateway: GatewayRing) -> None:
    url = f"ws{gateway.base_url.removeprefix('http')}/responses"
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(url, origin="https://elsewhere.example", proxy=None)
    assert refused.value.response.status_code == 403
    async with websockets.connect(url, origin=gateway.url, proxy=None):
        pass


async def test_there_are_limits_on_lanes(make_gateway: Any, tiny_model: Path) -> None:
    room = LanesRoom(
        SharedTokenizer(str(tiny_model)),
        SystemClock(),
        RoomLimits(LaneLimits(max_lanes=1, max_chars=20)),
    )
    gateway = await make_gateway(lanes_routes(room), has_lanes=False)
    async with (
        AsyncOpenAI(base_url=gateway.base_url, api_key="any") as sdk,
        sdk.responses.connect() as connection,
    ):
        client = LaneClient(connection)
        first = await client.prepare(user("hello"), stream_id="a")
        refused = await client.refusal(user("hello"), stream_id="b")
        assert (refused.error.code, refused.status) == ("too_many_lanes", 429)
        refused = await client.refusal(user("x" * 20), stream_id="a", previous_response_id=first.id)
        assert refused.error.code == "state_too_large"
    await room.close()


async def test_requests_that_wait_are_bounded(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    async with sdk.responses.connect() as connection:
        client = LaneClient(connection)
        gateway.ring.prefill.may_sample.clear()
        await client.send(user("hello"))
        await soon(gateway.ring.prefill.session_came.wait())
        await soon(gateway.ring.record.sealed.wait())
        for _ in range(65):
            await client.send(user("more"), generate=False)
        refused = (await client.events())[-1]
        assert (refused.error.code, refused.status) == ("too_many_requests", 429)
        gateway.ring.prefill.may_sample.set()


async def test_a_connection_lasts_so_long_and_the_sdk_opens_another(
    make_gateway: Any, tiny_model: Path
) -> None:
    room = LanesRoom(SharedTokenizer(str(tiny_model)), SystemClock(), RoomLimits(duration_s=0.0))
    gateway = await make_gateway(lanes_routes(room), has_lanes=False)
    codes = asyncio.Queue[int]()

    def on_reconnecting(event: Any) -> None:
        room.limits = RoomLimits()
        codes.put_nowait(event.close_code)

    async with (
        AsyncOpenAI(base_url=gateway.base_url, api_key="any") as sdk,
        sdk.responses.connect(on_reconnecting=on_reconnecting, initial_delay=0.0) as connection,
    ):
        events = aiter(connection)
        assert (await anext(events)).error.code == "websocket_connection_limit_reached"
        waiting = asyncio.ensure_future(anext(events))
        assert await soon(codes.get()) == 1001
        lost = {"previous_response_id": "resp_of_the_first", "input": "hi"}
        await connection.send({"type": "response.create", **lost})
        assert (await soon(waiting)).error.code == "previous_response_not_found"
        await LaneClient(connection).prepare(user("hi"))
    await room.close()
