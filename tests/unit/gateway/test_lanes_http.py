"""Streamed context without a socket: `prewarm`, `previous_response_id` and `store` of a POST."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from stream2llm.gateway.lanes.routes import LanesRoom, RoomLimits, lanes_routes
from stream2llm.gateway.lanes.state import LaneLimits
from stream2llm.gateway.lanes.stored import StoreLimits
from stream2llm.gateway.model_tokenizer import SharedTokenizer
from stream2llm.serving.system.clock import ManualClock
from tests.gateway_ring import GatewayRing
from tests.lane_client import LaneClient, document, turns, user
from tests.router_ring import soon

PREWARM = {"extra_body": {"prompt_cache_options": {"prewarm": True}}}


async def create(sdk: AsyncOpenAI, *items: Any, **fields: Any) -> Any:
    return await sdk.responses.create(
        **{"model": "tiny", "input": list(items), "max_output_tokens": 5, **fields}
    )


async def test_what_is_prewarmed_is_continued(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    ring = gateway.ring
    first = await create(sdk, user("hello"), **PREWARM)
    assert (first.status, first.output) == ("completed", [])
    second = await create(sdk, user("there"), previous_response_id=first.id, **PREWARM)
    answer = await create(sdk, user("what?"), previous_response_id=second.id)
    said = [("user", "hello"), ("user", "there"), ("user", "what?")]
    expected = ring.encode_written(turns(*said, answering=True))
    (record,) = ring.prefill.records
    assert (record.sequence, record.invalidated) == (expected, 0)
    assert answer.output_text == ring.decode_text(ring.brain.answer(expected, 5))
    events = [
        event
        async for event in await create(
            sdk, user("more"), previous_response_id=answer.id, stream=True
        )
    ]
    assert events[-1].type == "response.incomplete"
    assert len(ring.prefill.records) == 2


async def test_an_older_response_is_an_update(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    first = await create(sdk, user("hello"), **PREWARM)
    second = await create(sdk, user("abc"), previous_response_id=first.id, **PREWARM)
    await create(sdk, user("xyz"), previous_response_id=first.id, **PREWARM)
    with pytest.raises(openai.BadRequestError) as lost:
        await create(sdk, user("more"), previous_response_id=second.id)
    assert lost.value.code == "previous_response_not_found"
    assert len(gateway.ring.prefill.records) == 1


async def test_documents_and_what_is_stored(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    slot = {"type": "message", "role": "user", "content": "{{context}} what?"}
    answer = await create(sdk, slot, document("a dog", "d"), store=True)
    prompt = turns(("user", "a dog what?"), answering=True)
    assert gateway.ring.decode_text(gateway.ring.record.sequence).startswith("user\na dog what?")
    assert len(gateway.ring.record.sequence) >= len(gateway.ring.encode_written(prompt))
    assert await create(sdk, user("more"), previous_response_id=answer.id)


async def test_what_is_stored_is_bounded_and_forgotten(make_gateway: Any, tiny_model: Path) -> None:
    clock = ManualClock()
    limits = StoreLimits(LaneLimits(max_lanes=2), time_to_live_s=100)
    room = LanesRoom(SharedTokenizer(str(tiny_model)), clock, RoomLimits(store=limits))
    gateway = await make_gateway(lanes_routes(room), has_lanes=False)
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as sdk:
        ids = []
        for _ in range(3):
            ids.append((await create(sdk, user("hello"), **PREWARM)).id)
            clock.advance(1)
        await soon(gateway.ring.prefill.records[0].ended.wait())
        clock.advance(97)
        await create(sdk, user("more"), previous_response_id=ids[2], **PREWARM)
        for lost in ids[:2]:
            with pytest.raises(openai.BadRequestError):
                await create(sdk, user("more"), previous_response_id=lost)
        await soon(gateway.ring.prefill.records[1].ended.wait())
    await room.close()


async def test_requests_of_a_lane_wait_for_each_other(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    prefill = gateway.ring.prefill
    first = await create(sdk, user("hello"), **PREWARM)
    prefill.may_sample.clear()
    answering = asyncio.ensure_future(create(sdk, previous_response_id=first.id))
    await gateway.ring.told(1)
    await soon(gateway.ring.record.sealed.wait())
    waiting = asyncio.ensure_future(create(sdk, previous_response_id=first.id, **PREWARM))
    prefill.may_sample.set()
    await soon(asyncio.gather(answering, waiting))
    # One lane has one session at a time.
    assert len(prefill.records) == 2


async def test_lanes_of_sockets_are_refused(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await create(sdk, user("hello"), extra_body={"stream_id": "a"})
    assert refused.value.param == "stream_id"


async def test_a_response_that_is_stored_outlives_its_connection(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    async with sdk.responses.connect() as connection:
        client = LaneClient(connection)
        lost = await client.prepare(user("hello"), max_output_tokens=5)
        kept = await client.prepare(
            user("more"), previous_response_id=lost.id, store=True, max_output_tokens=5
        )
    whole = gateway.ring.encode_written(turns(("user", "hello"), ("user", "more"), answering=True))
    async with sdk.responses.connect() as connection:
        client = LaneClient(connection)
        refused = await client.refusal(previous_response_id=lost.id)
        assert refused.error.code == "previous_response_not_found"
        await client.answer(previous_response_id=kept.id, max_output_tokens=5)
        assert gateway.ring.record.sequence == whole
    await create(sdk, previous_response_id=kept.id)
    assert gateway.ring.record.sequence == whole
