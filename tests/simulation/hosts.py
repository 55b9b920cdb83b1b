"""The actors of the simulated cluster, as a supervisor has them: what Ray is to the real one.

The processes outlive their controller, and are found again by the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from router.server import Router
from stream2llm.serving.actor.loss import Cause, Loss
from stream2llm.serving.actor.replica_status import ReplicaStatus
from stream2llm.serving.settings.launch import RouterStarted, StartOutcome
from stream2llm.serving.settings.worker_spec import ClusterView, WorkerAddress
from tests.simulation.network import Network, Pipe
from tests.simulation.process import Process
from tests.simulation.worker import ModelWorker

_REMOTE_S = 0.01


class Replica:
    """One incarnation of a router or worker."""

    def __init__(
        self, process: Process, incarnation: int, hosted: ModelWorker | Router, node: str
    ) -> None:
        self.process = process
        self.incarnation = incarnation
        self.node = node
        self.hosted = hosted
        self.starting: asyncio.Task[StartOutcome] | None = None
        self.address: WorkerAddress | RouterStarted | None = None
        # Set when the process, or its engine, has died.
        self.died = asyncio.Event()
        self.reason = "its process has died"
        # A fault was done to it, or it was drained: it may be replaced.
        self.is_hurt = False
        process.on_death.append(self.died.set)


class Actors:
    """All of them by name; they outlive a controller."""

    def __init__(
        self,
        network: Network,
        random: Random,
        new: Callable[[str, int], Replica],
        start_s: float,
        *,
        has_room: bool,
    ) -> None:
        """`new` makes a replica; it takes about `start_s` to start.

        `has_room`: whether a node has room for one more than there should be.
        """
        self.network = network
        self.random = random
        self.by_name: dict[str, Replica] = {}
        self.new = new
        self.start_s = start_s
        self.has_room = has_room
        self.num_failed_starts = 0
        # The names of those that a controller could not reach for a time.
        self.unreached: set[str] = set()
        # Replicas that nothing was wrong with, and that a controller has killed.
        self.killed_well: list[str] = []

    def living(self) -> dict[str, int]:
        """The incarnation of each actor whose process lives."""
        living = (each for each in self.by_name.items() if each[1].process.is_alive)
        return {name: replica.incarnation for name, replica in living}


class VirtualHosts:
    """One controller's handles to the actors; see `supervisor.Hosts`."""

    def __init__(self, actors: Actors, controller: Process) -> None:
        self._actors = actors
        self._controller = controller
        # What this controller has asked for: each incarnation once.
        self._asked: set[tuple[str, int]] = set()

    def find(self) -> Mapping[str, int]:
        """The incarnation of each living actor."""
        return self._actors.living()

    async def create(
        self, name: str, incarnation: int, waits: Callable[[str], None]
    ) -> StartOutcome:
        actors = self._actors
        assert (name, incarnation) not in self._asked, f"{name}/{incarnation} is not counted up"
        self._asked.add((name, incarnation))
        replica = actors.by_name.get(name)
        if replica is None or replica.incarnation != incarnation:
            assert replica is None or replica.incarnation < incarnation, f"{name} counts back"
            assert replica is None or not replica.process.is_alive, f"{name} was not cleaned"
            replica = actors.by_name[name] = actors.new(name, incarnation)
        if replica.starting is None:
            replica.starting = replica.process.spawn(self._start(replica))
        died = asyncio.ensure_future(replica.died.wait())
        try:
            await asyncio.wait({died, replica.starting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            died.cancel()
        if replica.starting.done() and not replica.starting.cancelled():
            return replica.starting.result()
        return StartOutcome(None, replica.reason)

    async def _start(self, replica: Replica) -> StartOutcome:
        actors = self._actors
        await asyncio.sleep(actors.start_s * (0.5 + actors.random.random()))
        if actors.num_failed_starts:
            actors.num_failed_starts -= 1
            return StartOutcome(None, "it could not start")
        hosted = replica.hosted
        if isinstance(hosted, ModelWorker):
            address: Any = await hosted.start(actors.network, replica.node)
            replica.process.spawn(_note_death(replica, hosted))
        else:
            started = await hosted.start()
            address = RouterStarted(started.router_id, "router", started.grpc_address, "", ())
        replica.address = address
        return StartOutcome(address)

    async def wait_dead(self, name: str) -> Loss:
        replica = self._actors.by_name[name]
        await replica.died.wait()
        return Loss(Cause.DIED, replica.reason)

    async def connect(self, decode: str, prefill: WorkerAddress) -> None:
        await self._answers(decode)
        await self._answers(prefill.worker_id)

    async def examine(self, name: str) -> str:
        await self._answers(name)
        return ""

    async def status(self, name: str) -> ReplicaStatus:
        replica = await self._answers(name)
        return await replica.hosted.status()

    async def push_view(self, router: str, view: ClusterView) -> None:
        replica = await self._answers(router)
        assert isinstance(replica.hosted, Router)
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pipe = Pipe(self._actors.network, self._controller, replica.process)
        pipe.send(_set_view, replica.hosted, view, arrived)
        await self._unless_dead(replica, arrived)

    async def leaving(self) -> list[str]:
        return []

    async def missing_room(self, name: str) -> str:
        """For rolling restarts; see `rolling_restart.Rooms`."""
        await asyncio.sleep(_REMOTE_S)
        return "" if self._actors.has_room else f"no node has room for another {name}"

    async def drain(self, name: str, timeout_s: float) -> None:
        replica = await self._answers(name)
        replica.is_hurt = True
        await self._unless_dead(replica, replica.process.spawn(replica.hosted.drain(timeout_s)))

    async def stop(self, name: str) -> None:
        await self._answers(name)

    async def clean(self, name: str) -> None:
        replica = self._actors.by_name.get(name)
        await asyncio.sleep(_REMOTE_S)
        if replica is not None and self._actors.by_name.get(name) is replica:
            if self._is_well(replica):
                self._actors.killed_well.append(f"{name}/{replica.incarnation}")
            replica.process.kill()

    def _is_well(self, replica: Replica) -> bool:
        """Whether nothing was done to a replica that has started."""
        is_reached = replica.process.name not in self._actors.unreached
        is_running = replica.process.is_alive and replica.address is not None
        return is_running and is_reached and not replica.is_hurt

    async def _answers(self, name: str) -> Replica:
        """Returns when the actor has answered; raises when its process is dead."""
        replica = self._actors.by_name[name]
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pipe = Pipe(self._actors.network, self._controller, replica.process)
        pipe.send(_settle, asked)
        await self._unless_dead(replica, asked)
        return replica

    async def _unless_dead(self, replica: Replica, answer: asyncio.Future[Any]) -> None:
        ended = replica.process.ended
        await asyncio.wait({answer, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not replica.process.is_alive or answer.cancelled():
            raise ConnectionError("its process has died")
        answer.result()


async def _note_death(replica: Replica, worker: ModelWorker) -> None:
    """The actor says that its engine has died."""
    replica.reason = await worker.engine.wait_dead()
    replica.died.set()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _set_view(router: Router, view: ClusterView, arrived: asyncio.Future[None]) -> None:
    router.set_view(view)
    _settle(arrived)
