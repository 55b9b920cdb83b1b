"""Killing a worker's process, and waiting for its successor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from experiments.faults.parts import Kind, Part, living_parts
from stream2llm.cluster.cluster import Cluster
from stream2llm.serving.system.processes import owned_processes
from tests.cluster_pool import START_TIMEOUT_S


def find_part(cluster_id: str, replica: str, kind: Kind) -> Part:
    """The only process of that kind; raises ValueError when there are others, or none."""
    (part,) = (p for p in living_parts(cluster_id) if p.replica == replica and p.kind is kind)
    return part


def process_of(cluster: Cluster, role: str, which: str) -> int:
    """The pid of one process of a role's first worker: "actor", "EngineCore" or a rank, "Worker"."""
    return find_part(cluster.cluster_id, f"{role}-0", Kind(which)).process.pid


def side_channel_of(cluster: Cluster, role: str) -> tuple[str, int]:
    """Where the worker's engine gives its NIXL metadata."""
    environ = Path(f"/proc/{process_of(cluster, role, 'EngineCore')}/environ").read_bytes()
    variables = dict(item.split(b"=", 1) for item in environ.split(b"\0") if b"=" in item)
    host, port = (variables[b"VLLM_NIXL_SIDE_CHANNEL_" + name] for name in (b"HOST", b"PORT"))
    return host.decode(), int(port)


async def until_replaced(cluster: Cluster, role: str, incarnation: int) -> None:
    """Waits until the controller has made the worker anew and everything is ready."""

    def wait() -> None:
        status = cluster.status()
        while incarnation_of(status, role) <= incarnation:
            status = cluster.wait_change(status["num_events"], timeout_s=START_TIMEOUT_S)
        cluster.wait_ready(START_TIMEOUT_S)

    await asyncio.to_thread(wait)


def replica_of(cluster: Cluster, name: str) -> dict[str, Any]:
    """What the controller says of one worker or router."""
    found: dict[str, Any] = next(r for r in cluster.status()["replicas"] if r["name"] == name)
    return found


async def successor_of(cluster: Cluster, before: dict[str, Any]) -> dict[str, Any]:
    """Waits for the next incarnation of that replica, and until everything is ready.

    Fails where a process of the former one is left, which might go on.
    """

    def wait() -> dict[str, Any]:
        status = cluster.status()
        while replica_of(cluster, before["name"])["incarnation"] == before["incarnation"]:
            status = cluster.wait_change(status["num_events"], START_TIMEOUT_S)
        cluster.wait_ready(START_TIMEOUT_S)
        return replica_of(cluster, before["name"])

    after = await asyncio.to_thread(wait)
    left = {process.pid for process in owned_processes(cluster.cluster_id)}
    assert left.isdisjoint(before["address"]["pids"])
    return after


def incarnation_of(status: dict[str, Any], role: str) -> int:
    """How often a role's workers were made."""
    return max(r["incarnation"] for r in status["replicas"] if r["role"] == role)
