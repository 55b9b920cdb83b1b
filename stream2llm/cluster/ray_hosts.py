"""The actors of one cluster in Ray: creates them, finds them again, asks and ends them.

All are detached: they end by `down`, by the end of an attached `up`, or by its lapsed lease,
never because the controller or a driver has died. Their names say whose they are (`ActorName`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray

from stream2llm.api.errors import UnavailableError
from stream2llm.cluster import ray_nodes
from stream2llm.cluster.adoption import ActorName, newest
from stream2llm.cluster.layout import stand_in
from stream2llm.cluster.prefill_policy import FollowedPolicy, PolicyChoice
from stream2llm.cluster.ray_sweep import sweep
from stream2llm.cluster.rollout import whom
from stream2llm.cluster.room import Demand, what_is_missing
from stream2llm.serving.actor.actor_shell import load
from stream2llm.serving.actor.loss import Cause, Loss
from stream2llm.serving.actor.replica_status import ReplicaStatus
from stream2llm.serving.actor.sigterm import SETUP_HOOK
from stream2llm.serving.settings.launch import Launch, StartOutcome
from stream2llm.serving.settings.worker_spec import (
    PREFILLING,
    ClusterView,
    WorkerAddress,
    WorkerSpec,
    WorkerStatus,
)
from stream2llm.serving.system.processes import mark_environment, owner_mark

_log = logging.getLogger(__name__)

GRACEFUL_STOP_S = 15.0
# Between two looks at whether Ray has room for an actor whose process does not run yet.
ROOM_INTERVAL_S = 2.0
PING_TIMEOUT_S = 5.0
# Beyond the time that the sessions of a replica have: to end the rest, and to say so.
DRAIN_MARGIN_S = 5.0
_ACTORS = {
    "router": "router.actor:RouterActor",
    "gateway": "stream2llm.gateway.actor:GatewayActor",
    "prefill": "prefill_worker.actor:PrefillActor",
    "decode": "decode_worker.actor:DecodeActor",
    "mixed": "prefill_worker.actor:PrefillActor",
}


class RayHosts:
    """The actors of one cluster."""

    def __init__(self, cluster_id: str, launches: tuple[Launch, ...], policy: PolicyChoice) -> None:
        self._cluster_id = cluster_id
        self._policy = policy
        self._launches = {launch.name: launch for launch in launches}
        self._handles: dict[str, Any] = {}
        # By name: those that an earlier controller has created.
        self._found: set[str] = set()

    async def find(self) -> Mapping[str, int]:
        """Takes over the living actors; returns the incarnation of each."""
        names = await asyncio.to_thread(ray.util.list_named_actors)
        found = newest(names, self._cluster_id)
        for replica, name in found.items():
            with suppress(ValueError):  # it has died since
                self._handles[replica] = await asyncio.to_thread(ray.get_actor, str(name))
        self._found = set(self._handles)
        return {replica: found[replica].incarnation for replica in self._found}

    async def create(
        self, name: str, incarnation: int, waits: Callable[[str], None]
    ) -> StartOutcome:
        launch = self._with_policy(self._launch_of(name))
        try:
            self._handles[name] = self._new_actor(launch, incarnation)
            async with asyncio.timeout(launch.start_timeout_s) as limit:
                await self._until_placed(launch, waits, limit)
                outcome: StartOutcome = await self._handles[name].start.remote()
                if outcome.address is not None:
                    await self._catch_up(launch)
                return outcome
        except TimeoutError:
            return StartOutcome(None, f"not ready after {launch.start_timeout_s:.0f} s")
        except Exception as error:  # Ray's various errors for a process that died in its start
            return StartOutcome(None, reason_of(error))

    async def _until_placed(
        self, launch: Launch, waits: Callable[[str], None], limit: asyncio.Timeout
    ) -> None:
        """Returns when the actor's process runs; puts the limit off while no node has room."""
        ping = asyncio.ensure_future(self._ping(launch.name))
        try:
            while not (await asyncio.wait({ping}, timeout=ROOM_INTERVAL_S))[0]:
                missing = await self._missing_room(Demand.of_launch(launch))
                waits(missing)
                if missing:
                    limit.reschedule(asyncio.get_running_loop().time() + launch.start_timeout_s)
            ping.result()
            waits("")
        finally:
            ping.cancel()

    async def _missing_room(self, demand: Demand) -> str:
        try:
            state = await asyncio.to_thread(ray_nodes.ray_state)
        except Exception as error:  # whatever it is: then the start's time counts
            _log.warning("no_ray_state error=%r", error)
            return ""
        # In the queue for a moment longer than there is no room.
        return what_is_missing(demand, state.nodes) if state.queues(demand) else ""

    async def _ping(self, name: str) -> str:
        call = self._handles[name].ping.options(concurrency_group="control").remote()
        node_id: str = await call
        return node_id

    async def leaving(self) -> frozenset[str]:
        """Returns those on nodes that are about to end; none while Ray gives no answer."""
        try:
            draining = await asyncio.to_thread(ray_nodes.draining_nodes)
        except Exception as error:  # Ray raises various types
            _log.warning("no_ray_state error=%r", error)
            return frozenset()
        if not draining:
            return frozenset()
        names = tuple(self._handles)
        asked = (asyncio.wait_for(self._ping(name), PING_TIMEOUT_S) for name in names)
        node_ids = await asyncio.gather(*asked, return_exceptions=True)
        found = zip(names, node_ids, strict=True)
        return frozenset(name for name, node_id in found if node_id in draining)

    def _launch_of(self, name: str) -> Launch:
        launch = self._launches.get(name)
        return launch or stand_in(self._launches[whom(name)], name)

    async def missing_room(self, name: str) -> str:
        """Returns what every node lacks for one more worker like this; "" where one has room."""
        try:
            state = await asyncio.to_thread(ray_nodes.ray_state)
        except Exception as error:  # whatever it is
            return f"Ray does not say what room there is: {reason_of(error)}"
        return what_is_missing(Demand.of_launch(self._launches[name]), state.nodes)

    def _with_policy(self, launch: Launch) -> Launch:
        if launch.role not in PREFILLING or not isinstance(launch.spec, WorkerSpec):
            return launch
        options = launch.spec.options.with_policy(self._policy.name)
        return replace(launch, spec=replace(launch.spec, options=options))

    async def _catch_up(self, launch: Launch) -> None:
        """Sets the policy chosen while the worker started, before it is published."""
        if launch.role in PREFILLING and isinstance(launch.spec, WorkerSpec):
            began_with = launch.spec.options.prefill.policy
            await self._policy.catch_up(
                "" if launch.name in self._found else began_with,
                lambda policy: self.set_policy(launch.name, policy),
            )

    async def set_policy(self, name: str, policy: str) -> None:
        await self._ask(name, "set_policy", policy)

    async def policy_of(self, name: str) -> FollowedPolicy:
        status = await self.status(name)
        assert isinstance(status, WorkerStatus)
        return FollowedPolicy(status.policy, status.policy_failure)

    async def _ask(self, name: str, method: str, *arguments: Any) -> Any:
        handle = self._handles.get(name)
        if handle is None:
            raise UnavailableError("its process has died")
        try:
            return await getattr(handle, method).remote(*arguments)
        except ray.exceptions.RayError as error:
            raise UnavailableError(reason_of(error)) from error

    def _new_actor(self, launch: Launch, incarnation: int) -> Any:
        mark = mark_environment(owner_mark(self._cluster_id, launch.name, incarnation))
        actor = load(_ACTORS[launch.role]).options(
            name=str(ActorName(self._cluster_id, launch.name, incarnation)),
            lifetime="detached",
            get_if_exists=True,  # one that an earlier controller has created
            num_cpus=launch.num_cpus,
            num_gpus=launch.num_gpus,
            resources=dict(launch.placement.resources),
            label_selector=dict(launch.placement.labels),
            runtime_env={"env_vars": {**launch.environment, **mark, **SETUP_HOOK}},
        )
        return actor.remote(launch)

    async def wait_dead(self, name: str) -> Loss:
        try:
            loss: Loss = await self._handles[name].wait_dead.remote()
        except ray.exceptions.RayError as error:
            return Loss(Cause.DIED, reason_of(error))
        return loss

    async def connect(self, decode: str, prefill: WorkerAddress) -> None:
        await self._handles[decode].connect_peers.remote((prefill,))

    async def examine(self, name: str) -> str:
        fault: str = await self._handles[name].examine.remote()
        return fault

    async def status(self, name: str) -> ReplicaStatus:
        status: ReplicaStatus = await self._ask(name, "status")
        return status

    async def push_view(self, name: str, view: ClusterView) -> None:
        await self._handles[name].set_view.remote(view)

    async def clean(self, name: str, grace_s: float = 0.0) -> None:
        handle = self._handles.pop(name, None)
        self._found.discard(name)
        if handle is not None:
            ray.kill(handle, no_restart=True)
            # Fails once Ray knows that the actor is dead.
            with suppress(TimeoutError, ray.exceptions.RayError):
                async with asyncio.timeout(GRACEFUL_STOP_S):
                    await handle.ping.options(concurrency_group="control").remote()
        await asyncio.to_thread(sweep, f"{self._cluster_id}/{name}/", grace_s)

    async def drain(self, name: str, timeout_s: float) -> None:
        call = self._handles[name].drain.remote(timeout_s)
        await self._politely(name, call, timeout_s + DRAIN_MARGIN_S)

    async def stop(self, name: str) -> None:
        if name in self._handles:
            call = self._handles[name].stop.remote()
            await self._politely(name, call, GRACEFUL_STOP_S)

    async def _politely(self, name: str, call: Any, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s + 1.0):
                await call
        except (TimeoutError, ray.exceptions.RayError) as error:
            _log.warning("no_graceful_end name=%s error=%s", name, reason_of(error))


def reason_of(error: BaseException) -> str:
    """Returns one line of Ray's long error text."""
    if isinstance(error, ray.exceptions.ActorDiedError):
        return "its process has died"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "its process cannot be reached: its node or the network to it is down"
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        return f"{type(cause).__name__}: {cause}"
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
