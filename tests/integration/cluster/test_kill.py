"""A worker or a router dies: its sessions go on, with exact answers, and others at once.

kill -9 of one process of each role of a worker, and of one of two routers;
test_handover_failures.py kills the others, ranks too, while KV is fetched.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from experiments.lab_cluster import workers
from stream2llm.client import AsyncClient, Event, SamplingParameters, TokenDelta
from stream2llm.cluster.cluster import Cluster
from stream2llm.engine import side_channel
from tests.cluster_kill import incarnation_of, process_of, side_channel_of, until_replaced
from tests.cluster_pool import until_blocks_are_free
from tests.reference_engine import ReferenceEngine
from tests.router_beside import router_beside
from tests.side_channel_garbage import throw_garbage
from tests.streams import GREEDY, Stream, collect, play, until_prefilled

PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.9, "repetition_penalty": 1.3}
PROMPT = [1, 2, 3]
# Longer than what decode is ahead of its client.
LONG_TOKENS = 600
LONG = SamplingParameters(max_tokens=LONG_TOKENS, temperature=0.0, ignore_eos=True, **PENALTIES)
SMALL = Stream("kill", (("append", ("a",)),), {"a": 40})

# An engine takes most of a minute to come back; test_controller_fake.py kills processes every day.
VICTIMS = [("prefill", "actor"), ("decode", "EngineCore")]


@pytest.mark.slow
@pytest.mark.cluster("sensitive-1x1")
@pytest.mark.parametrize(("role", "which"), VICTIMS)
async def test_kill(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine, role: str, which: str
) -> None:
    """Its successor shakes hands with a worker on whose side channel there was garbage."""
    incarnation = incarnation_of(cluster.status(), role)
    partner = "decode" if role == "prefill" else "prefill"
    host, port = side_channel_of(cluster, partner)
    partners_incarnation = incarnation_of(cluster.status(), partner)
    await asyncio.to_thread(throw_garbage, host, port, random.Random(role))
    pids = [pid for worker in workers(cluster, role) for pid in worker.pids]
    streaming = client.session(prefix=SMALL.document("a"), sampling=GREEDY)
    async with streaming, client.session(prefix=PROMPT, sampling=LONG) as answering:
        await until_prefilled(streaming, 1)
        answer = aiter(answering.seal())
        tokens = list[int]()
        while len(tokens) < 3:
            event = await anext(answer)
            tokens += event.token_ids if isinstance(event, TokenDelta) else ()
        os.kill(process_of(cluster, role, which), signal.SIGKILL)
        await streaming.append([4])
        rest = await collect(answer)
        streamed = await collect(streaming.seal([5]))
    assert [*tokens, *rest.token_ids] == reference.answer(PROMPT, LONG_TOKENS, **PENALTIES)
    assert streamed.token_ids == reference.answer([*SMALL.document("a"), 4, 5], 8)
    # The answer had left the prefill worker, and the context had not come to decode.
    assert rest.finished.restarts == (1 if role == "decode" else 0)
    assert streamed.finished.restarts == (1 if role == "prefill" else 0)
    await until_replaced(cluster, role, incarnation)
    assert (await play(client, SMALL)).token_ids == reference.answer(SMALL.prompt, 8)
    assert incarnation_of(cluster.status(), partner) == partners_incarnation
    assert side_channel.ask(host, port, timeout_s=30) == ""
    assert not [pid for pid in pids if _exists(pid)]


@pytest.mark.slow
@pytest.mark.cluster("sensitive-1x1")
async def test_kill_of_a_router(cluster: Cluster, reference: ReferenceEngine) -> None:
    """Its sessions go on at the other one: a context and an answer of each."""
    incarnation = incarnation_of(cluster.status(), "router")
    async with (
        router_beside(cluster, *workers(cluster, "prefill"), *workers(cluster, "decode")) as other,
        AsyncClient([cluster.router_addresses[0], other]) as client,
        AsyncExitStack() as stack,
    ):
        opened = [
            await stack.enter_async_context(client.session(prefix=PROMPT, sampling=sampling))
            for sampling in (LONG, LONG, GREEDY, GREEDY)  # in turn at both routers
        ]
        answers = [aiter(session.seal()) for session in opened[:2]]
        begun = [[await _next_delta(answer) for _ in range(3)] for answer in answers]
        for session in opened[2:]:
            await session.append(SMALL.document("a"))
            await until_prefilled(session, 1)
        os.kill(_router_pid(cluster), signal.SIGKILL)
        rests = [await collect(answer) for answer in answers]
        streamed = [await collect(session.seal([5])) for session in opened[2:]]
        await until_replaced(cluster, "router", incarnation)
        await until_blocks_are_free(client.server_info)
    long = reference.answer(PROMPT, LONG_TOKENS, **PENALTIES)
    for deltas, rest in zip(begun, rests, strict=True):
        tokens = [token for delta in deltas for token in delta.token_ids]
        assert [*tokens, *rest.token_ids] == long
    short = reference.answer([*PROMPT, *SMALL.document("a"), 5], 8)
    assert [each.token_ids for each in streamed] == [short, short]
    assert sorted(each.finished.restarts for each in rests) == [0, 1]
    assert sorted(each.finished.restarts for each in streamed) == [0, 1]


async def _next_delta(answer: AsyncIterator[Event]) -> TokenDelta:
    while not isinstance(event := await anext(answer), TokenDelta):
        pass
    return event


def _router_pid(cluster: Cluster) -> int:
    (router,) = (r for r in cluster.status()["replicas"] if r["role"] == "router")
    return int(router["address"]["pids"][0])


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
