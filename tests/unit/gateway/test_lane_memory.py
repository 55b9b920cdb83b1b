"""What conversations take is bounded: of a tenant, and of all clients together."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import websockets
from openai import AsyncOpenAI

from stream2llm.api.errors import OverloadedError
from stream2llm.api.requests import ChatMessage
from stream2llm.gateway.lanes.conversation import Given
from stream2llm.gateway.lanes.memory import Memory
from stream2llm.gateway.lanes.state import Lanes
from stream2llm.serving.settings.gateway_spec import GatewayLimits
from tests.credentials import Keys
from tests.gateway_ring import GatewayRing
from tests.lane_client import LaneClient, user
from tests.polling import eventually
from tests.router_ring import soon

PREWARM = {"prompt_cache_options": {"prewarm": True}}
TEXT = "hello " * 100
# A lane with that.
OF_ONE = len(TEXT) + 1024 + 8


def client(gateway: GatewayRing, credentials: str = "any") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gateway.base_url, api_key=credentials, max_retries=0)


async def prewarm(sdk: AsyncOpenAI, text: str = TEXT, **fields: Any) -> Any:
    return await sdk.responses.create(
        model="tiny", input=[user(text)], extra_body=PREWARM, **fields
    )


async def is_kept(sdk: AsyncOpenAI, response_id: str) -> bool:
    try:
        await prewarm(sdk, "", previous_response_id=response_id)
    except openai.BadRequestError as error:
        if error.code != "previous_response_not_found":
            raise
        return False
    return True


def chars(gateway: GatewayRing) -> float | None:
    return gateway.metric("stream2llm_gateway_conversation_chars")


async def test_memory_of_a_part_counts_in_the_whole() -> None:
    whole = Memory(10, "all")
    part = Memory(8, "a part", part_of=whole)
    whole.add(5)
    part.add(4)
    assert (whole.num_chars, part.num_chars) == (9, 4)
    await part.ensure(1)
    with pytest.raises(OverloadedError, match="all have more than 10"):
        await part.ensure(2)
    with pytest.raises(OverloadedError, match="a part have more than 8"):
        await part.ensure(5)
    part.add(-4)
    await part.ensure(5)


async def test_memory_is_given_way_to_when_it_is_full() -> None:
    memory = Memory(10, "all")
    asked: list[int] = []

    async def give_way(num_chars: int) -> None:
        asked.append(num_chars)
        memory.add(-num_chars)

    memory.give_way = give_way
    memory.add(9)
    await memory.ensure(1)
    await memory.ensure(4)
    assert (asked, memory.num_chars) == ([3], 6)


def test_responses_without_texts_count_too() -> None:
    lanes = Lanes()
    for number in range(3):
        previous = f"r{number - 1}" if number else None
        step = lanes.step("a", previous, Given((ChatMessage("user", ""),)))
        lanes = lanes.committed(step, f"r{number}", None)
    assert lanes.num_chars == 0
    assert lanes.size_chars == 3 * 1024 + 8 * (1 + 2 + 3)


async def test_a_tenant_that_is_full_forgets_what_it_has_not_used_for_longest(
    make_gateway: Any, keys: Keys
) -> None:
    limits = GatewayLimits(max_conversation_chars_per_tenant=3 * OF_ONE)
    gateway = await make_gateway(limits=limits, security=keys.security())
    async with client(gateway, keys.create("a")) as sdk:
        other = sdk.with_options(api_key=keys.create("b"))
        others = await prewarm(other)
        first, second = await prewarm(sdk), await prewarm(sdk)
        await prewarm(sdk)
        assert chars(gateway) == 4 * OF_ONE
        await prewarm(sdk)
        assert chars(gateway) == 4 * OF_ONE
        assert not await is_kept(sdk, first.id)
        assert await is_kept(sdk, second.id)
        assert await is_kept(other, others.id)
        with pytest.raises(openai.RateLimitError) as refused:
            await prewarm(sdk, "x" * 3 * OF_ONE)
        assert refused.value.code == "state_too_large"


async def test_the_tenant_that_has_most_gives_way_to_others(make_gateway: Any, keys: Keys) -> None:
    limits = GatewayLimits(max_conversation_chars=5 * OF_ONE + OF_ONE // 3)
    gateway = await make_gateway(limits=limits, security=keys.security())
    async with client(gateway, keys.create("large")) as large:
        small = large.with_options(api_key=keys.create("small"))
        kept = await prewarm(small)
        oldest, *_ = [await prewarm(large) for _ in range(4)]
        later = await prewarm(small)
        assert chars(gateway) == 5 * OF_ONE
        assert not await is_kept(large, oldest.id)
        assert await is_kept(small, kept.id)
        assert await is_kept(small, later.id)


async def test_all_sockets_together_have_a_limit(make_gateway: Any) -> None:
    gateway = await make_gateway(limits=GatewayLimits(max_conversation_chars=3800))
    async with client(gateway) as sdk:
        async with sdk.responses.connect() as one, sdk.responses.connect() as two:
            await LaneClient(one).prepare(user(TEXT))
            refused = await LaneClient(two).refusal(user(TEXT))
            assert (refused.error.code, refused.status) == ("state_too_large", 429)
            assert await LaneClient(two).prepare(user("short"))
            assert gateway.metric("stream2llm_gateway_websockets") == 2
        await all_gone(gateway)


async def test_what_sockets_store_counts_for_the_tenant(make_gateway: Any) -> None:
    limits = GatewayLimits(max_conversation_chars_per_tenant=2 * OF_ONE)
    gateway = await make_gateway(limits=limits)
    async with client(gateway) as sdk:
        stored = []
        for _ in range(3):
            async with sdk.responses.connect() as connection:
                stored.append(await LaneClient(connection).prepare(user(TEXT), store=True))
        assert not await is_kept(sdk, stored[0].id)
        assert await is_kept(sdk, stored[2].id)


async def test_requests_that_are_refused_take_no_lane_of_others(make_gateway: Any) -> None:
    gateway = await make_gateway(limits=GatewayLimits(max_stored_lanes=2))
    async with client(gateway) as sdk:
        kept = await prewarm(sdk)
        for _ in range(3):
            with pytest.raises(openai.BadRequestError):
                await prewarm(sdk, "many words " * 1000)
        assert await is_kept(sdk, kept.id)


async def test_requests_that_wait_count(make_gateway: Any) -> None:
    gateway = await make_gateway(limits=GatewayLimits(max_conversation_chars=4000))
    async with client(gateway) as sdk:
        async with sdk.responses.connect() as connection:
            waiting = LaneClient(connection)
            gateway.ring.prefill.may_sample.clear()
            await waiting.send(user("hello"))
            await soon(gateway.ring.prefill.session_came.wait())
            await soon(gateway.ring.record.sealed.wait())
            await waiting.send(user("x" * 2000), generate=False)
            await waiting.send(user("x" * 2000), generate=False)
            refused = (await waiting.events())[-1]
            assert refused.error.code == "state_too_large"
        await all_gone(gateway)
        gateway.ring.prefill.may_sample.set()


async def all_gone(gateway: GatewayRing) -> None:
    """Returns when nothing is remembered; the server ends a connection after its client."""

    async def left() -> tuple[float | None, float | None]:
        return chars(gateway), gateway.metric("stream2llm_gateway_websockets")

    await eventually(left, lambda found: found == (0, 0))


async def test_connections_are_bounded(make_gateway: Any) -> None:
    gateway = await make_gateway(limits=GatewayLimits(max_websockets=1))
    async with client(gateway) as sdk:
        async with sdk.responses.connect() as connection:
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with sdk.responses.connect():
                    pass
            response = refused.value.response
            code = json.loads(response.body)["error"]["code"]
            assert (response.status_code, code) == (429, "websocket_connection_limit_reached")
            assert await LaneClient(connection).prepare(user("hello"))
        await all_gone(gateway)
        async with sdk.responses.connect() as again:
            assert await LaneClient(again).prepare(user("hello"))
