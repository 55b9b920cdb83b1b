"""A process of a real worker stands still, and goes on when its successor is there.

test_controller_fake.py shows the same of workers without an engine, and of a router.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest

from experiments.faults.parts import Kind
from stream2llm.client import AsyncClient, AsyncSession, SamplingParameters, TokenDelta
from stream2llm.cluster.cluster import Cluster
from stream2llm.serving.system.processes import owned_processes
from tests.cluster_kill import find_part
from tests.cluster_pool import START_TIMEOUT_S
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Stream, play, until_prefilled

pytestmark = pytest.mark.slow

ENDLESS = SamplingParameters(max_tokens=500, temperature=0.0, ignore_eos=True)
SMALL = Stream("hung", (("append", ("a",)),), {"a": 40})


@pytest.mark.cluster("sensitive-2x2")
async def test_an_engine_and_an_actor_stand_still(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    """One worker of each role, both with a session; the others go on, and so do new sessions."""
    stopped = {"prefill-1": "actor", "decode-0": "EngineCore"}
    await _stand_still(cluster, client, stopped, {"prefill-1": "unresponsive", "decode-0": "hung"})
    for _ in range(4):  # on every pair of workers
        assert (await play(client, SMALL)).token_ids == reference.answer(SMALL.prompt, 8)


@pytest.mark.cluster("sensitive-ranks")
async def test_a_rank_stands_still(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    """Its EngineCore is well, and waits for it within a step."""
    await _stand_still(cluster, client, {"prefill-0": "Worker"}, {"prefill-0": "hung"})
    assert (await play(client, SMALL)).token_ids == reference.answer(SMALL.prompt, 8)


async def _stand_still(
    cluster: Cluster, client: AsyncClient, stopped: Mapping[str, str], causes: Mapping[str, str]
) -> None:
    """Stops those processes while both roles work; returns when their workers are replaced."""
    before = {name: _replica(cluster, name) for name in stopped}
    prefix = SMALL.document("a")
    # The first one is on the first worker of its role, the second on the second where there are two.
    answering = client.session(prefix=prefix, sampling=ENDLESS)
    async with answering, client.session(prefix=prefix, sampling=GREEDY) as streaming:
        answer = aiter(answering.seal())
        while not isinstance(await anext(answer), TokenDelta):
            pass
        await until_prefilled(streaming, 1)
        for name, which in stopped.items():
            part = find_part(cluster.cluster_id, name, Kind(which))
            os.kill(part.process.pid, signal.SIGSTOP)
        async with asyncio.timeout(2 * START_TIMEOUT_S):
            # They go on at other workers, or at the successors.
            await asyncio.gather(_read(answer), _read(_sealed(streaming)))
    for name, cause in causes.items():
        after = await asyncio.to_thread(_until_replaced, cluster, before[name])
        assert after["last_cause"] == cause, after["last_error"]
    _wake_up(cluster, [pid for each in before.values() for pid in each["address"]["pids"]])


async def _read(events: Any) -> None:
    async for _ in events:
        pass


async def _sealed(session: AsyncSession) -> Any:
    """New work, so that a rank that stands still is missed."""
    await session.append([5, 6, 7])
    async for event in session.seal():
        yield event


def _wake_up(cluster: Cluster, pids: list[int]) -> None:
    """None of those processes is there to go on."""
    ours = {process.pid for process in owned_processes(cluster.cluster_id)}
    assert ours.isdisjoint(pids)


def _replica(cluster: Cluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(r for r in cluster.status()["replicas"] if r["name"] == name)
    return found


def _until_replaced(cluster: Cluster, before: dict[str, Any]) -> dict[str, Any]:
    status = cluster.status()
    while _replica(cluster, before["name"])["incarnation"] == before["incarnation"]:
        status = cluster.wait_change(status["num_events"], START_TIMEOUT_S)
    cluster.wait_ready(START_TIMEOUT_S)
    return _replica(cluster, before["name"])
