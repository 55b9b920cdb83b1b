"""What the supervisor needs of the actors; `RayHosts` has them in Ray, tests in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from stream2llm.serving.actor.loss import Loss
from stream2llm.serving.actor.replica_status import ReplicaStatus
from stream2llm.serving.settings.launch import StartOutcome
from stream2llm.serving.settings.worker_spec import ClusterView, WorkerAddress


class Hosts(Protocol):
    """The actors by name."""

    async def create(
        self, name: str, incarnation: int, waits: Callable[[str], None]
    ) -> StartOutcome:
        """Creates the actor and starts what it hosts; returns errors in the outcome.

        Calls `waits` with what no node has while there is no place for the actor, and with
        "" once there is.
        """

    async def wait_dead(self, name: str) -> Loss:
        """Returns why once the process or its engine is dead."""

    async def connect(self, decode: str, prefill: WorkerAddress) -> None:
        """Makes the decode worker shake hands; raises when that fails."""

    async def examine(self, name: str) -> str:
        """Returns what keeps others from connecting with a worker, or ""; raises if it is dead."""

    async def status(self, name: str) -> ReplicaStatus:
        """Returns the load; raises when the process is dead."""

    async def push_view(self, name: str, view: ClusterView) -> None:
        """Sends a router or gateway the view; raises when it is dead."""

    async def leaving(self) -> Collection[str]:
        """Returns the replicas whose node is about to end."""

    async def drain(self, name: str, timeout_s: float) -> None:
        """Returns when the replica's sessions have ended, which takes about so long at most."""

    async def stop(self, name: str) -> None:
        """Ends what the actor hosts, if possible."""

    async def clean(self, name: str) -> None:
        """Kills the actor and every process it left."""
