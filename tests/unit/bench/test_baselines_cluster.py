"""The two ends of a cluster's host process, with a cluster that is made up."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.baselines import cluster_link
from experiments.baselines.cluster_host import ClusterHostSpec, serve, spec_of
from experiments.baselines.cluster_link import ClusterLink
from experiments.baselines.engines.messages import HostSpec
from experiments.baselines.systems import SystemDiedError

SPEC = ClusterHostSpec("mixed", "shallow", HostSpec("stock", "", (0,), 9, 32, 64, 8, 256), (0, 1))


class FakeCluster:
    """Follows every policy but one."""

    router_addresses = ("127.0.0.1:7",)
    cluster_id = "abc"
    log_dir = Path("/logs")

    def __init__(self) -> None:
        self.policies: list[str] = []

    def set_policy(self, policy: str) -> Any:
        self.policies.append(policy)
        return SimpleNamespace(errors=["mixed-1 does not"] if policy == "mcps" else [])


class FakeHost:
    """Serves in a thread instead of a process, until the socket closes."""

    def __init__(
        self, cluster: FakeCluster | None, connection: socket.socket, argument: str
    ) -> None:
        assert spec_of(argument) == SPEC
        self._cluster = cluster
        self._thread = Thread(target=self._serve, args=(connection.dup(),))
        self._thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rw") as lines:
            if self._cluster is not None:
                serve(self._cluster, lines)  # type: ignore[arg-type]

    def epitaph(self, what: str) -> str:
        return f"{what}; the log"

    async def end(self, _: float) -> None:
        await asyncio.to_thread(self._thread.join, 5)
        assert not self._thread.is_alive()


def hosted(monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster | None) -> None:
    def host(_: str, connection: socket.socket, argument: str, __: Path) -> FakeHost:
        return FakeHost(cluster, connection, argument)

    monkeypatch.setattr(cluster_link, "HostProcess", host)


async def test_a_cluster_says_where_it_is_and_switches_its_policy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = FakeCluster()
    hosted(monkeypatch, cluster)
    link = await ClusterLink.start(SPEC, tmp_path / "log")
    assert (link.router_address, link.cluster_id, link.log_dir) == ("127.0.0.1:7", "abc", "/logs")
    await link.set_policy("fcfs")
    with pytest.raises(SystemDiedError, match="mixed-1 does not"):
        await link.set_policy("mcps")
    await link.stop()
    assert cluster.policies == ["fcfs", "mcps"]


async def test_a_start_that_fails_ends_with_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hosted(monkeypatch, None)
    with pytest.raises(SystemDiedError, match="process ended; the log"):
        await ClusterLink.start(SPEC, tmp_path / "log")
