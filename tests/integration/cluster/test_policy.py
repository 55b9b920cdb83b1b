"""Switching the policy while sessions stream: no session is lost, no answer changes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from typer.testing import Result

from prefill_worker.policy import POLICIES
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from tests.command_lines import cli
from tests.polling import eventually
from tests.reference_engine import ReferenceEngine
from tests.scrape import scrape
from tests.streams import GREEDY, Outcome, Stream, collect, send_event

pytestmark = [pytest.mark.slow, pytest.mark.cluster("sensitive-1x1")]

# One for each policy. Together 18,000 tokens, on a KV memory for 12,800.
ROUNDS = (("append", "a"), ("append", "b"), ("update", "a c"), ("append", "d"), ("append", "e"))
STREAMS = [
    Stream(
        f"switched {number}",
        tuple((kind, tuple(names.split())) for kind, names in ROUNDS),
        {"a": 700 + number, "b": 650, "c": 600, "d": 800, "e": 120},
    )
    for number in range(4)
]


async def policy(cluster: Cluster, *args: str) -> Result:
    """`stream2llm policy`, as an operator types it."""
    command = ["policy", *args, "--controller", cluster.http_address]
    return await asyncio.to_thread(cli, *command)


@pytest.fixture(autouse=True)
async def _default_again(cluster: Cluster) -> AsyncIterator[None]:
    yield
    assert (await policy(cluster, "srpf")).exit_code == 0


async def test_half_streamed_sessions_survive_every_switch(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    before = scrape(cluster)
    async with asyncio.TaskGroup() as group:
        told = asyncio.Barrier(len(STREAMS) + 1)
        playing = [group.create_task(play_in_rounds(client, stream, told)) for stream in STREAMS]
        for name in POLICIES:
            await told.wait()  # all have sent an event, and have work to do
            switched = await policy(cluster, name)
            assert (switched.exit_code, switched.stdout) == (0, f"prefill-0: {name}\n")
            assert cluster.status()["policy"] == name
            await told.wait()
        assert (await policy(cluster)).stdout == f"prefill-0: {name}\n"
    answers = [task.result() for task in playing]
    assert answers == reference.answers([stream.prompt for stream in STREAMS], 8)

    async def gained() -> Counter[str]:
        now = scrape(cluster)
        now.subtract(before)
        return now

    decisions = [f"stream2llm_scheduler_decision_seconds_count/{name}" for name in POLICIES]
    await eventually(gained, lambda now: all(now[name] > 0 for name in decisions))


async def play_in_rounds(client: AsyncClient, stream: Stream, told: asyncio.Barrier) -> list[int]:
    """One event for each policy; every other stream is sealed before the last switch."""
    async with client.session(
        prefix=stream.prefix, suffix=stream.suffix, sampling=GREEDY
    ) as session:
        sealed: asyncio.Task[Outcome] | None = None
        sent: set[str] = set()
        for number in range(len(POLICIES)):
            await send_event(session, stream, number, sent)
            is_last = number + 1 == len(POLICIES)
            if is_last and STREAMS.index(stream) % 2:
                sealed = asyncio.create_task(collect(session.seal()))
            await told.wait()
            await told.wait()  # switched
        return (await (sealed or collect(session.seal()))).token_ids
