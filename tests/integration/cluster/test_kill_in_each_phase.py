"""A part of a cluster dies, or stands still, while there are sessions in every phase; no answer shows it.

kill -9 and SIGSTOP of processes of workers, of one of two routers, and of the controller.
test_kill.py and test_hung.py do so where there is one worker of a role, test_handover_failures.py
while KV is fetched, test_multi_node.py to a raylet.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping

import pytest

from experiments.faults.parts import Kind
from experiments.lab_cluster import workers
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from tests.cluster_kill import (
    find_part,
    incarnation_of,
    replica_of,
    successor_of,
    until_replaced,
)
from tests.cluster_pool import until_blocks_are_free
from tests.held_sessions import held_sessions
from tests.reference_engine import ReferenceEngine
from tests.router_beside import router_beside
from tests.streams import Stream, play

pytestmark = [pytest.mark.slow, pytest.mark.cluster("sensitive-2x2")]

SMALL = Stream("behind", (("append", ("a",)),), {"a": 40})
KILLED = {"prefill-0": Kind.ENGINE_CORE, "decode-0": Kind.ACTOR}
STOPPED = {"prefill-0": Kind.ACTOR, "decode-0": Kind.ENGINE_CORE}


def strike(cluster: Cluster, victims: Mapping[str, Kind], number: signal.Signals) -> None:
    parts = [find_part(cluster.cluster_id, name, kind) for name, kind in victims.items()]
    for part in parts:
        os.kill(part.process.pid, number)


@pytest.mark.parametrize(
    ("number", "victims", "causes"),
    [
        pytest.param(signal.SIGKILL, KILLED, ("died", "died"), id="killed"),
        pytest.param(signal.SIGSTOP, STOPPED, ("unresponsive", "hung"), id="stopped"),
    ],
)
async def test_a_worker_of_each_role(
    cluster: Cluster,
    client: AsyncClient,
    reference: ReferenceEngine,
    number: signal.Signals,
    victims: Mapping[str, Kind],
    causes: tuple[str, str],
) -> None:
    before = [replica_of(cluster, name) for name in victims]
    async with held_sessions(cluster.cluster_id, client) as sessions:
        strike(cluster, victims, number)
        # An engine whose actor is struck goes on, too.
        sessions.go_on(but=[name for name, kind in victims.items() if kind is Kind.ENGINE_CORE])
        await sessions.finish()
    sessions.check(reference)
    assert min(sessions.restarts().values()) >= 1, sessions.restarts()
    for each, cause in zip(before, causes, strict=True):
        after = await successor_of(cluster, each)
        assert after["last_cause"] == cause, after["last_error"]
    for _ in range(4):  # on every pair of workers
        assert (await play(client, SMALL)).token_ids == reference.answer(SMALL.prompt, 8)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_one_of_two_routers(
    cluster: Cluster, reference: ReferenceEngine, number: signal.Signals
) -> None:
    """Its sessions go on at the other one."""
    incarnation = incarnation_of(cluster.status(), "router")
    beside = router_beside(cluster, *workers(cluster, "prefill"), *workers(cluster, "decode"))
    async with beside as other, AsyncClient([cluster.router_addresses[0], other]) as client:
        async with held_sessions(cluster.cluster_id, client) as sessions:
            strike(cluster, {"router-0": Kind.ACTOR}, number)
            sessions.go_on()
            await sessions.finish()
        await until_replaced(cluster, "router", incarnation)
        await until_blocks_are_free(client.server_info)
    sessions.check(reference)
    assert min(sessions.restarts().values()) >= 1, sessions.restarts()


async def test_the_controller(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    """Sessions do not need it, and its successor serves."""
    num_before = cluster.status()["controller_restarts"]
    async with held_sessions(cluster.cluster_id, client) as sessions:
        strike(cluster, {"controller": Kind.ACTOR}, signal.SIGKILL)
        sessions.go_on()
        await sessions.finish()
    sessions.check(reference)
    # Waits for the successor.
    assert (await asyncio.to_thread(cluster.status))["controller_restarts"] == num_before + 1
