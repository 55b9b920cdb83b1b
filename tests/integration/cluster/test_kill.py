"""A worker dies: its sessions fail at once and retryably, others go on, it comes back.

kill -9 of each process of a worker: the actor, its EngineCore, its Worker.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stream2llm.api.errors import UnavailableError
from stream2llm.client import (
    AsyncClient,
    AsyncSession,
    Event,
    SamplingParameters,
    TokenDelta,
)
from stream2llm.cluster.cluster import Cluster
from stream2llm.engine import side_channel
from tests.cluster_kill import incarnation_of, process_of, side_channel_of, until_replaced
from tests.cluster_pool import workers
from tests.reference_engine import ReferenceEngine
from tests.side_channel_garbage import throw_garbage
from tests.streams import Stream, collect, play, until_prefilled

pytestmark = [pytest.mark.integration]
ENDLESS = SamplingParameters(max_tokens=2000, temperature=0.0, ignore_eos=True)
SMALL = Stream("kill", (("append", ("a",)),), {"a": 40})
AT_ONCE_S = 15

slow = pytest.mark.slow
# An engine takes most of a minute to come back; test_controller_fake.py kills processes every day.
VICTIMS = [
    ("prefill", "actor"),
    ("prefill", "EngineCore"),
    ("decode", "actor"),
    ("decode", "EngineCore"),
]


@slow
@pytest.mark.cluster("sensitive-1x1")
@pytest.mark.parametrize(("role", "which"), VICTIMS)
async def test_kill(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine, role: str, which: str
) -> None:
    await _kill(cluster, client, reference, role, which)


@slow
@pytest.mark.cluster("sensitive-ranks")
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_kill_of_a_rank(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine, role: str
) -> None:
    await _kill(cluster, client, reference, role, "Worker")


async def _kill(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine, role: str, which: str
) -> None:
    """Its successor shakes hands with a worker on whose side channel there was garbage."""
    incarnation = incarnation_of(cluster.status(), role)
    partner = "decode" if role == "prefill" else "prefill"
    host, port = side_channel_of(cluster, partner)
    partners_incarnation = incarnation_of(cluster.status(), partner)
    await asyncio.to_thread(throw_garbage, host, port, random.Random(role))
    pids = [pid for worker in workers(cluster, role) for pid in worker.pids]
    streaming = client.session(prefix=SMALL.document("a"), sampling=ENDLESS)
    async with streaming, client.session(prefix=[1, 2, 3], sampling=ENDLESS) as answering:
        await until_prefilled(streaming, 1)
        answer = aiter(answering.seal())
        num_tokens = 0
        while num_tokens < 3:
            event = await anext(answer)
            num_tokens += len(event.token_ids) if isinstance(event, TokenDelta) else 0
        os.kill(process_of(cluster, role, which), signal.SIGKILL)
        async with asyncio.timeout(AT_ONCE_S):
            await (_streaming_fails(streaming) if role == "prefill" else _fails(answer))
        if role == "prefill":
            # The answer left this worker long ago and goes on.
            assert isinstance(await anext(answer), TokenDelta)
        else:
            await streaming.append([4])
            await until_prefilled(streaming, 2)
    await until_replaced(cluster, role, incarnation)
    assert (await play(client, SMALL)).token_ids == reference.answer(SMALL.prompt, 8)
    assert incarnation_of(cluster.status(), partner) == partners_incarnation
    assert side_channel.ask(host, port, timeout_s=30) == ""
    assert not [pid for pid in pids if _exists(pid)]


async def _streaming_fails(session: AsyncSession) -> None:
    with pytest.raises(UnavailableError) as caught:
        await collect(session.seal())
    _is_retryable(caught.value)


async def _fails(answer: AsyncIterator[Event]) -> None:
    with pytest.raises(UnavailableError) as caught:
        await collect(answer)
    _is_retryable(caught.value)


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _is_retryable(error: UnavailableError) -> None:
    assert error.reason == "WORKER_LOST"
    assert error.retry_after_s
