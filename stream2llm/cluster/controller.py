"""The actor `controller`: creates routers and workers, replaces dead ones, publishes the view.

Two thin adapters: `RayHosts` (actors by name) and `Controller` (the actor that the
driver calls). `supervision` decides what to do, `supervisor` does it. The data path
does not depend on the controller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import ray
from prometheus_client import CollectorRegistry
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stream2llm import __version__
from stream2llm.api.errors import InvalidRequestError, UnavailableError
from stream2llm.cluster import supervision
from stream2llm.cluster.config import ControllerConfig
from stream2llm.cluster.controller_http import ControllerHttp, ControllerMetrics
from stream2llm.cluster.prefill_policy import PolicyChoice, PolicyState, PrefillPolicy
from stream2llm.cluster.supervisor import Settings, Supervisor
from stream2llm.serving import garbage, logs
from stream2llm.serving.actor_shell import load
from stream2llm.serving.launch import Launch, StartOutcome
from stream2llm.serving.node_address import node_address
from stream2llm.serving.processes import kill_owned, mark_environment, owner_mark
from stream2llm.serving.worker_spec import ClusterView, WorkerAddress, WorkerSpec

_log = logging.getLogger(__name__)

CONTROLLER_NAME = "controller"
GRACEFUL_STOP_S = 15.0
# Time for Ray to notice that an actor was killed through it.
EXIT_GRACE_S = 3.0
# Beyond the drain timeout of the routers, which then end the remaining sessions.
DRAIN_MARGIN_S = 5.0
_ACTORS = {
    "router": "router.actor:RouterActor",
    "prefill": "prefill_worker.actor:PrefillActor",
    "decode": "decode_worker.actor:DecodeActor",
}


@dataclass(frozen=True, slots=True)
class ControllerSpec:
    """The input of a controller."""

    cluster_id: str
    launches: tuple[Launch, ...]
    config: ControllerConfig
    drain_timeout_s: float
    # Actors outlive the controller, so that the data path does.
    detached: bool


class RayHosts:
    """The actors of one cluster."""

    def __init__(self, spec: ControllerSpec, policy: PolicyChoice) -> None:
        self._cluster_id = spec.cluster_id
        self._policy = policy
        self._lifetime = "detached" if spec.detached else None
        self._launches = {launch.name: launch for launch in spec.launches}
        self._handles: dict[str, Any] = {}
        self._node_id = ray.get_runtime_context().get_node_id()

    async def create(self, name: str, incarnation: int) -> StartOutcome:
        launch = self._with_policy(self._launches[name])
        try:
            self._handles[name] = self._new_actor(launch, incarnation)
            async with asyncio.timeout(launch.start_timeout_s):
                outcome: StartOutcome = await self._handles[name].start.remote()
                if outcome.address is not None:
                    await self._catch_up(launch)
                return outcome
        except TimeoutError:
            return StartOutcome(None, f"not ready after {launch.start_timeout_s:.0f} s")
        except Exception as error:  # Ray's various errors for a process that died in its start
            return StartOutcome(None, _reason_of(error))

    def _with_policy(self, launch: Launch) -> Launch:
        if launch.role != "prefill" or not isinstance(launch.spec, WorkerSpec):
            return launch
        options = launch.spec.options.with_policy(self._policy.name)
        return replace(launch, spec=replace(launch.spec, options=options))

    async def _catch_up(self, launch: Launch) -> None:
        """Sets the policy chosen while the worker started, before it is published."""
        if launch.role == "prefill" and isinstance(launch.spec, WorkerSpec):
            await self._policy.catch_up(
                launch.spec.options.prefill.policy,
                lambda policy: self.set_policy(launch.name, policy),
            )

    async def set_policy(self, name: str, policy: str) -> None:
        await self._ask(name, "set_policy", policy)

    async def policy_of(self, name: str) -> str:
        policy: str = (await self._ask(name, "status")).policy
        return policy

    async def _ask(self, name: str, method: str, *arguments: Any) -> Any:
        handle = self._handles.get(name)
        if handle is None:
            raise UnavailableError("its process has died")
        try:
            return await getattr(handle, method).remote(*arguments)
        except ray.exceptions.RayError as error:
            raise UnavailableError(_reason_of(error)) from error

    def _new_actor(self, launch: Launch, incarnation: int) -> Any:
        mark = mark_environment(owner_mark(self._cluster_id, launch.name, incarnation))
        actor = load(_ACTORS[launch.role]).options(
            name=launch.name,
            lifetime=self._lifetime,
            num_cpus=launch.num_cpus,
            num_gpus=launch.num_gpus,
            runtime_env={"env_vars": {**launch.environment, **mark}},
        )
        return actor.remote(launch)

    async def wait_dead(self, name: str) -> str:
        try:
            reason: str = await self._handles[name].wait_dead.remote()
        except ray.exceptions.RayError as error:
            return _reason_of(error)
        return reason

    async def connect(self, decode: str, prefill: WorkerAddress) -> None:
        await self._handles[decode].connect_peers.remote((prefill,))

    async def examine(self, name: str) -> str:
        fault: str = await self._handles[name].examine.remote()
        return fault

    async def status(self, name: str) -> Any:
        return await self._handles[name].status.remote()

    async def push_view(self, router: str, view: ClusterView) -> None:
        await self._handles[router].set_view.remote(view)

    async def clean(self, name: str, grace_s: float = 0.0) -> None:
        handle = self._handles.pop(name, None)
        if handle is not None:
            ray.kill(handle, no_restart=True)
            # Fails once Ray knows that the actor is dead; then its name is free.
            with suppress(TimeoutError, ray.exceptions.RayError):
                async with asyncio.timeout(GRACEFUL_STOP_S):
                    await handle.ping.options(concurrency_group="control").remote()
        await self._sweep(f"{self._cluster_id}/{name}/", grace_s)

    async def _sweep(self, prefix: str, grace_s: float) -> None:
        """Kills processes with such a mark, on all nodes."""
        others = [self._sweep_node(node, prefix) for node in self._other_nodes()]
        await asyncio.gather(asyncio.to_thread(kill_owned, prefix, grace_s), *others)

    def _other_nodes(self) -> list[str]:
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        return [node for node in alive if node != self._node_id]

    async def _sweep_node(self, node_id: str, prefix: str) -> None:
        place = NodeAffinitySchedulingStrategy(node_id, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(kill_owned)
        with suppress(ray.exceptions.RayError):  # the node is gone with all its processes
            await task.options(scheduling_strategy=place).remote(prefix)

    async def drain(self, name: str, timeout_s: float) -> None:
        await self._politely(name, self._handles[name].drain.remote(timeout_s), timeout_s)

    async def stop(self, name: str) -> None:
        if name in self._handles:
            call = self._handles[name].stop.remote()
            await self._politely(name, call, GRACEFUL_STOP_S)

    async def _politely(self, name: str, call: Any, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s + 1.0):
                await call
        except (TimeoutError, ray.exceptions.RayError) as error:
            _log.warning("no_graceful_end name=%s error=%s", name, _reason_of(error))


@ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=64)
class Controller:
    """Supervises one cluster."""

    def __init__(self, spec: ControllerSpec) -> None:
        logs.configure()
        self._spec = spec
        choice = _configured_policy(spec.launches)
        self._hosts = RayHosts(spec, choice)
        self._policy = PrefillPolicy(choice, self._hosts, self._prefill_replicas)
        self._metrics = ControllerMetrics(CollectorRegistry())
        self._last_errors: dict[str, str] = {}  # by replica
        self._run: asyncio.Task[None] | None = None
        self._supervisor: Supervisor
        self._http: ControllerHttp

    async def start(self) -> str:
        """Begins to create everything; returns the address of its HTTP server."""
        config = self._spec.config
        roles = {launch.name: launch.role for launch in self._spec.launches}
        settings = Settings(
            config.max_start_failures, config.health_interval_s, config.unresponsive_after_s
        )
        self._supervisor = Supervisor(roles, self._hosts, settings, self._record)
        self._http = ControllerHttp(
            self._metrics.registry,
            self._supervisor.addresses.values,
            self._status,
            self._policy,
            self._retry,
        )
        host = node_address() if config.host == "auto" else config.host
        address = await self._http.start(host, config.http_port)
        garbage.settle()
        self._supervisor.view = replace(self._supervisor.view, controller_address=address)
        self._run = asyncio.create_task(self._supervisor.run())
        return address

    async def watch(self, seen: int) -> dict[str, Any]:
        """Returns the status with events after the first `seen`; waits until there are some."""
        await self._supervisor.wait_change(seen)
        return {**self._status(), "events": self._supervisor.events_since(seen)}

    async def status(self) -> dict[str, Any]:
        """Returns everything as plain data, as /status shows it."""
        return self._status()

    async def set_policy(self, policy: str) -> PolicyState:
        """Switches all prefill workers; the result names those that did not confirm."""
        return await self._policy.switch(policy)

    def _retry(self, name: str | None) -> list[str]:
        if name is not None and name not in self._supervisor.fleet:
            raise InvalidRequestError(
                f"no router or worker is called {name!r}; there are"
                f" {', '.join(self._supervisor.fleet)}",
                reason="UNKNOWN_WORKER",
                field="name",
            )
        return self._supervisor.retry(name)

    async def drain(self) -> None:
        """Ends supervision and waits for the open sessions; new ones are refused."""
        await self._end_supervision()
        timeout_s = self._spec.drain_timeout_s
        await self._for_each("router", lambda n: self._hosts.drain(n, timeout_s + DRAIN_MARGIN_S))
        # No router sends them anything now.
        await self._for_each("prefill", lambda n: self._hosts.drain(n, DRAIN_MARGIN_S))
        await self._for_each("decode", lambda n: self._hosts.drain(n, DRAIN_MARGIN_S))

    async def stop(self) -> None:
        """Ends all actors but this one, gracefully if possible, and all their processes."""
        await self._end_supervision()
        await self._for_each("router", self._hosts.stop)
        # Concurrently: an engine takes some seconds to end.
        await asyncio.gather(
            self._for_each("decode", self._hosts.stop),
            self._for_each("prefill", self._hosts.stop),
        )
        names = [launch.name for launch in self._spec.launches]
        await asyncio.gather(*(self._hosts.clean(name, EXIT_GRACE_S) for name in names))
        await self._http.close()

    async def _end_supervision(self) -> None:
        if self._run is not None:
            self._run.cancel()
            await asyncio.wait([self._run])
            self._run = None

    async def _for_each(self, role: str, act: Any) -> None:
        fleet = self._supervisor.fleet.values()
        work: list[Coroutine[Any, Any, None]] = [
            act(r.name) for r in fleet if r.role == role and r.is_alive
        ]
        await asyncio.gather(*work)

    def _prefill_replicas(self) -> list[supervision.Replica]:
        return [r for r in self._supervisor.fleet.values() if r.role == "prefill"]

    def _record(self) -> None:
        fleet = self._supervisor.fleet
        self._metrics.record(fleet)
        # Kept after the successor is ready, to explain the restarts.
        self._last_errors |= {r.name: r.reason for r in fleet.values() if r.reason}

    def _status(self) -> dict[str, Any]:
        supervisor = self._supervisor
        fleet = supervisor.fleet
        return {
            "version": __version__,
            "cluster_id": self._spec.cluster_id,
            "ready": supervisor.is_ready,
            "policy": self._policy.chosen,
            "given_up": [r.name for r in supervision.given_up(fleet)],
            "view_version": supervisor.view.version,
            "num_events": supervisor.num_events,
            "http_address": self._http.address,
            "replicas": [self._describe(replica) for replica in fleet.values()],
        }

    def _describe(self, replica: supervision.Replica) -> dict[str, Any]:
        address = self._supervisor.addresses.get(replica.name)
        load_now = self._supervisor.statuses.get(replica.name)
        return {
            "name": replica.name,
            "role": replica.role,
            "phase": replica.phase.value,
            "incarnation": replica.incarnation,
            "restarts": max(0, replica.incarnation - 1),
            "start_failures": replica.start_failures,
            "reason": replica.reason,
            "last_error": self._last_errors.get(replica.name, ""),
            "address": None if address is None else asdict(address),
            "status": asdict(load_now) if is_dataclass(load_now) else load_now,  # type: ignore[arg-type]
        }


def _configured_policy(launches: tuple[Launch, ...]) -> PolicyChoice:
    """Returns the policy, which is the same for all prefill workers, and what may replace it."""
    specs = [launch.spec for launch in launches if launch.role == "prefill"]
    assert isinstance(specs[0], WorkerSpec)
    options = specs[0].options.prefill
    return PolicyChoice(options.policy, options.import_paths)


def _reason_of(error: BaseException) -> str:
    """Returns one line of Ray's long error text."""
    if isinstance(error, ray.exceptions.ActorDiedError):
        return "its process has died"
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        return f"{type(cause).__name__}: {cause}"
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
