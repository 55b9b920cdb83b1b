"""Streams that send nothing hold no place that another tenant needs; quotas at real routers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.security.principal import Scope
from stream2llm.serving.settings.tenant_options import OTHERS, TenantOptions, TenantsOptions
from tests.credentials import Keys, sent
from tests.polling import eventually
from tests.router_ring import Conversation, Ring, a_ring, reason_of, soon

NUM_PLACES = 8


async def until(is_so: Callable[[], bool]) -> None:
    """Waits for what happens in this process without an event to wait for."""

    async def read() -> bool:
        return is_so()

    await eventually(read, bool)


async def fill(ring: Ring, key: str, *, opens: bool = False, empty: int = 0) -> list[Conversation]:
    """Takes every place with streams that send nothing, or nothing but events without a token."""
    streams = [ring.converse(sent(key)) for _ in range(NUM_PLACES)]
    for stream in streams:
        if opens:
            await stream.open()
            await stream.next("accepted")
        for _ in range(empty):
            await stream.append()
    await until(lambda: ring.num_open == NUM_PLACES)
    return streams


async def is_served(stream: Conversation) -> bool:
    await stream.open(prefix="hello ", sampling={"max_tokens": 2})
    await stream.seal()
    return (await stream.answer()).finished is not None


@pytest.mark.parametrize(
    "how", [{}, {"opens": True}, {"opens": True, "empty": 3}], ids=["nothing", "open", "empty"]
)
async def test_another_tenant_is_served_while_one_fills_the_router_with_silent_streams(
    tiny_model: Path, keys: Keys, how: dict[str, Any]
) -> None:
    heavy, light = keys.create("heavy"), keys.create("light")
    async with a_ring(tiny_model, security=keys.security(), max_open_sessions=NUM_PLACES) as ring:
        streams = await fill(ring, heavy, **how)
        assert await is_served(ring.converse(sent(light)))
        failures = [asyncio.create_task(stream.failure()) for stream in streams]
        gone, others = await asyncio.wait(failures, return_when=asyncio.FIRST_COMPLETED)
        error = gone.pop().result()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(error) == "SILENT"
        assert ring.metric("stream2llm_errors_total", reason="SILENT") == 1
        for other in others:  # which cancels its RPC
            other.cancel()
        await asyncio.wait(others)


async def test_a_tenant_takes_no_place_from_itself(tiny_model: Path, keys: Keys) -> None:
    heavy = keys.create("heavy")
    async with a_ring(tiny_model, security=keys.security(), max_open_sessions=NUM_PLACES) as ring:
        streams = await fill(ring, heavy)
        error = await ring.converse(sent(heavy)).failure()
        assert reason_of(error) == "TOO_MANY_SESSIONS"
        for stream in streams:
            stream.call.cancel()


async def test_a_session_whose_context_streams_in_keeps_its_place(
    tiny_model: Path, keys: Keys
) -> None:
    heavy, light = keys.create("heavy"), keys.create("light")
    async with a_ring(tiny_model, security=keys.security(), max_open_sessions=2) as ring:
        streams = [ring.converse(sent(heavy)) for _ in range(2)]
        for number, stream in enumerate(streams, 1):
            await stream.open(prefix="hello ")
            await stream.next("accepted")
            await until(lambda number=number: len(ring.prefill.records) == number)
            await ring.told(1)
        error = await ring.converse(sent(light)).failure()
        assert reason_of(error) == "TOO_MANY_SESSIONS"
        for stream in streams:
            assert (await stream.finish()).finished


# Long enough to be tokenized in a thread, and short enough for the model.
LONG = "word " * 410


async def generated(ring: Ring, key: str) -> Any:
    request = pb.GenerateRequest(text=LONG, sampling={"max_tokens": 2})
    answer = [each async for each in ring.stub.Generate(request, metadata=sent(key))]
    return answer[-1].finished


async def streamed(ring: Ring, key: str, of: str, may_seal: Callable[[], bool]) -> Any:
    stream = ring.converse(sent(key))
    await stream.open(prefix=LONG if of == "prefix" else "", sampling={"max_tokens": 2})
    if of == "document":
        await stream.append(LONG)
    if of == "suffix":
        await stream.seal(suffix=pb.Content(text=LONG))
    else:
        await until(may_seal)
        await stream.seal()
    return (await stream.answer()).finished


@pytest.mark.parametrize("of", ["prompt", "prefix", "document", "suffix"])
async def test_content_that_is_being_tokenized_was_sent(
    tiny_model: Path, keys: Keys, of: str
) -> None:
    """Every thread that tokenizes is taken, so that the router has the text, and no token of it."""
    heavy, light = keys.create("heavy"), keys.create("light")
    limits = {"max_open_sessions": 2, "silent_after_s": 0}
    async with a_ring(tiny_model, security=keys.security(), **limits) as ring:
        threads, may_tokenize = ring.router._parts.text._encoding._short, threading.Event()
        for _ in range(threads._max_workers):
            threads.submit(may_tokenize.wait)
        try:
            answers = [
                asyncio.create_task(
                    generated(ring, heavy)
                    if of == "prompt"
                    else streamed(ring, heavy, of, may_tokenize.is_set)
                )
                for _ in range(2)
            ]
            await until(lambda: threads._work_queue.qsize() == 2)
            error = await ring.converse(sent(light)).failure()
            assert reason_of(error) == "TOO_MANY_SESSIONS"
        finally:
            may_tokenize.set()
        assert all(await asyncio.gather(*answers))


async def test_one_that_stopped_sending_gives_its_place_away(tiny_model: Path, keys: Keys) -> None:
    heavy, light = keys.create("heavy"), keys.create("light")
    limits = {"max_open_sessions": 2, "silent_after_s": 0}
    async with a_ring(tiny_model, security=keys.security(), **limits) as ring:
        streams = [ring.converse(sent(heavy)) for _ in range(2)]
        for number, stream in enumerate(streams, 1):
            await stream.open(prefix="hello ")
            await stream.next("accepted")
            await until(lambda number=number: len(ring.prefill.records) == number)
            await ring.told(1)
        assert await is_served(ring.converse(sent(light)))
        assert reason_of(await streams[0].failure()) == "SILENT"
        await streams[1].seal()
        assert (await streams[1].answer()).finished


async def test_a_stream_that_never_opens_ends(tiny_model: Path) -> None:
    async with a_ring(tiny_model, open_timeout_s=0.05) as ring:
        error = await ring.converse().failure()
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert reason_of(error) == "NOT_OPENED"


async def test_quotas_hold_across_two_routers(tiny_model: Path, keys: Keys) -> None:
    """Five sessions in all: however they are spread, no sixth is open at the same time."""
    key = keys.create("acme")
    tenants = TenantsOptions(named={"acme": TenantOptions(max_open_sessions=5)})
    security = keys.security(tenants=tenants)
    async with AsyncExitStack() as stack:
        rings = [
            await stack.enter_async_context(
                a_ring(tiny_model, security=security, router_index=index, num_routers=2)
            )
            for index in range(2)
        ]
        opened, refused = [], []
        for _ in range(4):
            for ring in rings:
                stream = ring.converse(sent(key))
                try:  # the status may be here before the write ends
                    await stream.open(prefix="hello ")
                    await stream.next("accepted")
                    opened.append(stream)
                except grpc.aio.AioRpcError as error:
                    refused.append(from_rpc_error(error))
        assert len(opened) == 5
        assert {error.reason for error in refused if error} == {"QUOTA_OPEN_SESSIONS"}
        assert all(error and (error.retry_after_s or 0) >= 1 for error in refused)
        counted = [
            ring.metric(
                "stream2llm_tenant_quota_refusals_total", tenant="acme", quota="max_open_sessions"
            )
            for ring in rings
        ]
        assert sum(each or 0 for each in counted) == 3
        for stream in opened:
            assert (await stream.finish()).finished
        for ring in rings:
            await soon(ring.nothing_is_open())
            assert ring.metric("stream2llm_tenant_sessions_active", tenant="acme") == 0


async def test_a_context_beyond_the_quota_of_held_tokens_fails_its_session_alone(
    tiny_model: Path, keys: Keys
) -> None:
    tenants = TenantsOptions(default=TenantOptions(max_held_tokens=10))
    key, security = keys.create("acme"), keys.security(tenants=tenants)
    async with a_ring(tiny_model, security=security) as ring:
        small, large = ring.converse(sent(key)), ring.converse(sent(key))
        await small.open(prefix="hello ")
        await small.next("accepted")
        await large.open()
        await large.append("word " * 40)
        error = await large.failure()
        assert reason_of(error) == "QUOTA_HELD_TOKENS"
        assert (await small.finish()).finished


async def test_workers_get_the_tenants_weight_and_priority(tiny_model: Path, keys: Keys) -> None:
    tenants = TenantsOptions(named={"acme": TenantOptions(weight=3, priority=-2)})
    key, security = keys.create("acme"), keys.security(tenants=tenants)
    async with a_ring(tiny_model, security=security) as ring:
        stream = ring.converse(sent(key))
        await stream.open(prefix="hello ", sampling={"max_tokens": 3})
        assert (await stream.finish()).finished
        for tenant in (ring.record.open.tenant, ring.decode.requests[0].tenant):
            assert (tenant.name, tenant.weight, tenant.priority) == ("acme", 3.0, -2)


async def test_a_reader_sees_what_the_configured_tenants_use(tiny_model: Path, keys: Keys) -> None:
    """Others are shown together, and by no name."""
    tenants = TenantsOptions(named={"acme": TenantOptions(weight=3, max_open_sessions=1)})
    acme, zeta = keys.create("acme"), keys.create("zeta")
    reader = keys.create("ops", Scope.READ)
    async with a_ring(tiny_model, security=keys.security(tenants=tenants)) as ring:
        streams = []
        for key in (acme, zeta):
            stream = ring.converse(sent(key))
            await stream.open(prefix="hello ")
            await stream.append("the quick brown fox")
            await stream.next("accepted")
            streams.append(stream)
        assert reason_of(await ring.converse(sent(acme)).failure()) == "QUOTA_OPEN_SESSIONS"
        for stream in streams:
            await stream.finish()
        info = await ring.stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=sent(reader))
        prompt = len(ring.encode("hello ")) + len(ring.encode("the quick brown fox"))
        shown = [(t.name, t.computed_tokens, t.num_refused, t.weight) for t in info.tenants]
        assert shown == [("acme", prompt, 1, 3.0), (OTHERS, prompt, 0, 1.0)]
        for label in ("acme", OTHERS):
            assert ring.metric("stream2llm_tenant_prefilled_tokens_total", tenant=label) == prompt
            assert ring.metric("stream2llm_tenant_input_tokens_total", tenant=label) == prompt
            assert ring.metric("stream2llm_tenant_ttft_seconds_count", tenant=label) == 1
        assert "zeta" not in str([*ring.router.registry.collect()])
