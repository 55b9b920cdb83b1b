"""One simulated cluster with its clients, from its start to its end.

start -> every replica is ready -> sessions and faults -> the last session has ended
      -> the faults end, the cluster recovers, leases end -> what is left is looked at
"""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random

from router.server import Router
from router.tokenizer import ModelTokenizer
from stream2llm.api.errors import UnavailableError
from stream2llm.cluster.rollout import whom
from tests.fake_workers import Brain
from tests.simulation.client import Client, client_on
from tests.simulation.controller import Values, VirtualController
from tests.simulation.engine import Engine
from tests.simulation.faults import Fault, Kind
from tests.simulation.hosts import Actors, Replica, VirtualHosts
from tests.simulation.kv import LEASE_S, Fabric, KvMemory
from tests.simulation.loop import VirtualClock, VirtualLoop
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.routers import PORT, new_router
from tests.simulation.script import Script
from tests.simulation.sessions import Plan
from tests.simulation.worker import ModelWorker

# Ray starts a controller again after about so long.
_CONTROLLER_RESTARTS_S = 3.0
# For what ends on its own when the last session has.
_QUIET_S = LEASE_S + 10.0
# Between two tries of an operator's command.
_OPERATOR_TRIES_S = 1.0
# For the replacement of one replica by a rolling restart (`rollout restart --limit`).
_TURN_LIMIT_S = 200.0
# Longest step of a slow engine.
_SLOW_STEP_S = 3.0


class World:
    """One run; make it in its loop."""

    def __init__(self, script: Script, loop: VirtualLoop, tokenizer: ModelTokenizer) -> None:
        self.script = script
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.random = Random(f"run {script.seed}")
        self.network = Network(loop, self.random)
        self.fabric = Fabric(self.network)
        self.brain = Brain()
        self.actors = Actors(
            self.network, self.random, self._new_replica, script.start_s, has_room=script.has_room
        )
        self.processes: list[Process] = []
        self.clients: list[Client] = []
        # All that have ever been.
        self.replicas: list[Replica] = []
        self.controller: VirtualController
        self._controller_process: Process
        self._tokenizer = tokenizer
        self._values = Values()
        # An operator who wants a rolling restart finds no controller.
        self._is_asking = False

    # -- the run ----------------------------------------------------------------------

    async def run(self) -> None:
        """Returns when all sessions have ended and the cluster is quiet again."""
        self._start_controller()
        await self._until_ready()
        for fault in self.script.faults:
            at_step = self.loop.num_steps + fault.at_step
            self.loop.at_step(at_step, partial(self.inflict, fault))
        await asyncio.wait([self._start_client(plan) for plan in self.script.plans])
        self.loop.forget_steps()
        await asyncio.sleep(max((fault.duration_s for fault in self.script.faults), default=0.0))
        await self._until_ready()
        await asyncio.sleep(_QUIET_S)

    async def close(self) -> None:
        """Stops the routers as their actors do."""
        self._controller_process.kill()
        for replica in self.living():
            if isinstance(replica.hosted, Router):
                await asyncio.wait({replica.process.spawn(replica.hosted.stop())})

    async def _until_ready(self) -> None:
        """Returns when every replica is ready, and every router knows."""
        while not self._is_ready:  # noqa: ASYNC110 - of changing controllers
            await asyncio.sleep(1.0)

    @property
    def _is_ready(self) -> bool:
        is_there = self._controller_process.is_alive and not self._is_asking
        return is_there and self.controller.is_done

    def living(self) -> list[Replica]:
        """The replicas that run."""
        return [each for each in self.replicas if each.process.is_alive]

    # -- processes --------------------------------------------------------------------

    def _new_process(self, name: str) -> Process:
        process = Process(name, self.loop)
        self.network.watch(process)
        self.processes.append(process)
        return process

    def _start_controller(self) -> None:
        self._controller_process = process = self._new_process("controller")
        hosts = VirtualHosts(self.actors, process)
        self.controller = VirtualController(self.script.roles, hosts, self._values, self.clock)
        process.spawn(self.controller.run())

    def _new_replica(self, name: str, incarnation: int) -> Replica:
        process, role = self._new_process(name), self.script.roles[whom(name)]
        hosted: ModelWorker | Router
        if role == "router":
            hosted = new_router(
                name,
                process,
                self.network,
                self.clock,
                self._tokenizer,
                is_tight=self.script.is_tight,
                is_long=self.script.is_long,
                admission=self.script.admission,
            )
        else:
            memory = KvMemory(f"{name}/{incarnation}", process)
            self.fabric.add(memory)
            engine = Engine(
                memory,
                self.fabric,
                self.brain,
                self.random,
                self.script.step_s,
                self.script.chunk_tokens,
            )
            hosted = ModelWorker(
                name, role, engine, self.script.num_blocks, is_bounded=self.script.is_bounded
            )
        replica = Replica(process, incarnation, hosted, self.script.node_of(name, incarnation))
        self.replicas.append(replica)
        return replica

    def _start_client(self, plan: Plan) -> asyncio.Task[None]:
        process = self._new_process(plan.name)
        addresses = [
            f"{name}:{PORT}" for name, role in self.script.roles.items() if role == "router"
        ]
        first = self.random.randrange(len(addresses))
        library = client_on(self.network, process, addresses, first=first, read_s=plan.read_s)
        client = Client(plan, library)
        self.clients.append(client)
        process.on_death.append(client.leave)
        return process.spawn(client.run())

    # -- faults -----------------------------------------------------------------------

    def inflict(self, fault: Fault) -> None:
        """Lets a fault begin; one whose target does not run has none."""
        if fault.kind is Kind.ROLLOUT:
            self._restart_all(fault.duration_s)
        elif fault.kind is Kind.NODE_DIES:
            for replica in self.living():
                if replica.node == fault.target:
                    replica.process.kill()
        elif fault.target == "controller":
            self._hurt_process(fault, self._controller_process)
            if not self._controller_process.is_alive:
                self.loop.call_later(_CONTROLLER_RESTARTS_S, self._start_controller)
        elif fault.target in self.script.roles:
            replica = self.actors.by_name[fault.target]
            if fault.other == "controller":
                self.actors.unreached.add(fault.target)
            if replica.process.is_alive:
                replica.is_hurt = True
                self._hurt_replica(fault, replica)
        else:
            target = next((p for p in self.processes if p.name == fault.target), None)
            if target is not None:
                self._hurt_process(fault, target)

    def _restart_all(self, stops_s: float) -> None:
        """`stream2llm rollout restart` and, after `stops_s` unless it is 0, `rollout stop`."""
        controller, process = self.controller, self._controller_process
        self._is_asking = not (process.is_alive and controller.is_listening)
        if self._is_asking:  # the operator tries again
            self.loop.call_later(_OPERATOR_TRIES_S, self._restart_all, stops_s)
            return
        process.call(controller.rolling.begin, (), None, _TURN_LIMIT_S)
        if stops_s:
            self.loop.call_later(stops_s, self._stop_restart)

    def _drain(self, name: str) -> None:
        """`stream2llm drain`, again where the controller has just begun."""
        try:
            self.controller.supervisor.drain(name)
        except UnavailableError:
            self._controller_process.call(self._drain, name, delay_s=_OPERATOR_TRIES_S)

    def _stop_restart(self) -> None:
        self._controller_process.call(self.controller.rolling.stop)

    def _hurt_process(self, fault: Fault, process: Process) -> None:
        match fault.kind:
            case Kind.KILL:
                process.kill()
            case Kind.STOP:
                self.network.stop(process, fault.duration_s)
            case Kind.PARTITION:
                self.network.partition(fault.target, fault.other, fault.duration_s)
            case Kind.RESET:
                self.network.reset(fault.target, fault.other)
            case _:
                raise ValueError(f"{process.name} has no fault of the kind {fault.kind}")

    def _hurt_replica(self, fault: Fault, replica: Replica) -> None:
        match fault.kind:
            case Kind.DRAIN:
                self._controller_process.call(self._drain, fault.target)
            case Kind.BAD_KV:
                self.fabric.num_bad_reads += 1
            case Kind.FAILED_START:
                self.actors.num_failed_starts += 1
                replica.process.kill()
            case _ if isinstance(replica.hosted, ModelWorker):
                self._hurt_worker(fault, replica.hosted)
            case _:
                self._hurt_process(fault, replica.process)

    def _hurt_worker(self, fault: Fault, worker: ModelWorker) -> None:
        match fault.kind:
            case Kind.ENGINE_DIES:
                worker.engine.die("its processes have ended")
            case Kind.ENGINE_HANGS:
                worker.engine.hang()
            case Kind.SLOW:
                worker.engine.slowness = _SLOW_STEP_S / self.script.step_s
            case Kind.FULL:
                worker.is_full = True
            case _:
                self._hurt_process(fault, worker.process)
