"""The actor `controller`: creates routers and workers, replaces dead ones, publishes the view.

A thin adapter over `Supervisor`, which `supervision` decides for, and `RayHosts`. The data
path does not depend on the controller: when it dies, Ray starts it again, on another node if
need be, and it goes on with the living actors and with what its predecessor has saved.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import ray
from prometheus_client import CollectorRegistry

from stream2llm import __version__
from stream2llm.api.errors import InvalidRequestError, UnavailableError
from stream2llm.cluster import supervision
from stream2llm.cluster.adoption import LastEnd, SavedState
from stream2llm.cluster.config import ControllerConfig
from stream2llm.cluster.controller_http import ControllerHttp, ControllerMetrics
from stream2llm.cluster.fleet_report import describe_fleet
from stream2llm.cluster.lease import Lease
from stream2llm.cluster.prefill_policy import PolicyChoice, PolicyState, PrefillPolicy
from stream2llm.cluster.ray_hosts import DRAIN_MARGIN_S, RayHosts
from stream2llm.cluster.rolling_restart import RollingRestart
from stream2llm.cluster.state_store import GcsKeyValues, StateStore
from stream2llm.cluster.supervisor import Settings, Supervisor
from stream2llm.security.certificates import open_certificates
from stream2llm.security.tls import http_server_context
from stream2llm.security.tls_metrics import TlsMetrics
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.actor.node_address import node_address
from stream2llm.serving.observability import logs
from stream2llm.serving.settings.launch import Launch, ReplicaRole
from stream2llm.serving.settings.observability_options import LogFormat
from stream2llm.serving.settings.security_options import SecurityOptions
from stream2llm.serving.settings.worker_spec import PREFILLING, WorkerSpec
from stream2llm.serving.system import garbage
from stream2llm.serving.system.clock import SystemClock
from stream2llm.serving.system.gc_pauses import GcPauses

_log = logging.getLogger(__name__)

CONTROLLER_NAME = "controller"
# Time for Ray to notice that an actor was killed through it.
EXIT_GRACE_S = 3.0
# Until a controller that could not start ends, so that Ray tries again; a driver that waits
# for it has the error by then.
START_AGAIN_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class ControllerSpec:
    """The input of a controller."""

    cluster_id: str
    launches: tuple[Launch, ...]
    config: ControllerConfig
    drain_timeout_s: float
    security: SecurityOptions
    logs: LogFormat = "text"
    # The cluster ends when its driver has not renewed its lease for so long. None: no lease.
    lease_s: float | None = None


# Without retries of tasks: the driver repeats what it may repeat.
@ray.remote(max_restarts=-1, max_task_retries=0, max_concurrency=64)
class Controller:
    """Supervises one cluster."""

    def __init__(self, spec: ControllerSpec) -> None:
        logs.configure(log_format=spec.logs)
        self._spec = spec
        self._clock = SystemClock()
        choice = _configured_policy(spec.launches)
        self._choice = choice
        self._hosts = RayHosts(spec.cluster_id, spec.launches, choice)
        self._policy = PrefillPolicy(choice, self._hosts, self._prefill_replicas)
        self._rolling: RollingRestart
        self._store = StateStore(spec.cluster_id, self._state, GcsKeyValues())
        self._policy.on_chosen = self._store.changed
        self._metrics = ControllerMetrics(CollectorRegistry())
        self._gc_pauses = GcPauses(self._clock)
        self._metrics.registry.register(self._gc_pauses)
        self._lease: Lease | None = None
        self._last_ends: dict[str, LastEnd] = {}  # by replica
        self._num_controllers = 1
        self._starting: asyncio.Task[str] | None = None
        self._run: asyncio.Task[None] | None = None
        self._more: list[asyncio.Task[None]] = []
        self._supervisor: Supervisor
        self._http: ControllerHttp
        # When Ray starts it again, no driver is there to do so.
        ray.get_runtime_context().current_actor.begin.remote()

    # -- beginning ---------------------------------------------------------

    async def begin(self) -> None:
        """For the actor itself: starts; ends the process if that fails, so that Ray tries again."""
        try:
            await self.start()
        except Exception:
            _log.exception("controller_not_started")
            await asyncio.sleep(START_AGAIN_AFTER_S)
            os._exit(1)

    async def start(self) -> str:
        """Begins to create everything, or takes over; returns the address of its HTTP server."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> str:
        saved = await self._store.load()
        living = await self._hosts.find()
        self._supervisor = Supervisor(self._roles, self._hosts, self._settings, self._record)
        self._rolling = RollingRestart(self._supervisor, self._hosts, self._store.changed)
        if saved is not None or living:
            self._take_over(saved or SavedState({}), living)
            for unknown in living.keys() - self._supervisor.fleet.keys():  # an unsaved stand-in
                self._begin(self._hosts.clean(unknown))
        address = await self._listen(saved)
        garbage.settle()
        self._gc_pauses.watch()
        self._supervisor.set_controller_address(address)
        await self._store.save()  # the number of controllers, before any view is sent
        self._run = asyncio.create_task(self._supervisor.run())
        self._begin(self._rolling.run())
        self._begin(self._store.run())
        if saved is not None:
            self._begin(self._tell_policy())
        if self._spec.lease_s is not None:
            self._lease = Lease(self._spec.lease_s, self._clock.monotonic_s)
            self._begin(self._end_with_lease(self._lease))
        return address

    def _begin(self, work: Any) -> None:
        self._more.append(asyncio.create_task(work))

    @property
    def _roles(self) -> dict[str, ReplicaRole]:
        return {launch.name: launch.role for launch in self._spec.launches}

    @property
    def _settings(self) -> Settings:
        config = self._spec.config
        return Settings(
            config.max_start_failures,
            config.health_interval_s,
            config.unresponsive_after_s,
            drain_timeout_s=self._spec.drain_timeout_s,
        )

    def _take_over(self, saved: SavedState, living: Any) -> None:
        saved = saved.at(self._clock.monotonic_s(), self._clock.wall_s())
        self._num_controllers = self._supervisor.take_over(self._roles, saved, living)
        self._last_ends = dict(saved.last_ends)
        self._choice.name = saved.policy or self._choice.name
        self._rolling.rollout = saved.rollout
        self._metrics.took_over(self._num_controllers - 1)
        self._record()
        _log.warning(
            "controller_took_over number=%d living=%s", self._num_controllers, sorted(living)
        )

    async def _tell_policy(self) -> None:
        """The predecessor may have died before it had informed all workers."""
        state = await self._policy.switch(self._choice.name)
        if state.errors:
            _log.warning("policy_not_confirmed errors=%s", state.errors)

    async def _listen(self, saved: SavedState | None) -> str:
        certificates = open_certificates(self._spec.security.tls_files)
        if certificates is not None:
            self._metrics.registry.register(TlsMetrics(certificates))
        guards = Guards(self._spec.security.auth, self._clock)
        self._metrics.registry.register(guards.metrics)
        self._http = ControllerHttp(
            self._metrics.registry,
            self._supervisor.addresses.values,
            self._status,
            self._policy,
            self._retry,
            self._drain_one,
            self._rolling,
            http_server_context(certificates),
            guards.of("controller"),
        )
        config = self._spec.config
        host = node_address() if config.host == "auto" else config.host
        before_host, _, before_port = (saved.http_address if saved else "").rpartition(":")
        if not config.http_port and before_host == host:
            try:  # where operators and Prometheus look for it
                return await self._http.start(host, int(before_port))
            except UnavailableError as error:
                _log.warning("controller_moves error=%s", error.message)
        return await self._http.start(host, config.http_port)

    # -- for the driver ----------------------------------------------------

    async def watch(self, seen: int) -> dict[str, Any]:
        """Returns the status with events after the first `seen`; waits until there are some."""
        await self.start()
        await self._supervisor.wait_change(seen)
        return {**self._status(), "events": self._supervisor.events_since(seen)}

    async def status(self) -> dict[str, Any]:
        """Returns everything as plain data, as /status shows it."""
        await self.start()
        return self._status()

    async def set_policy(self, policy: str) -> PolicyState:
        """Switches all prefill workers; the result names those that did not confirm."""
        await self.start()
        return await self._policy.switch(policy)

    async def renew(self) -> None:
        """The driver of an attached cluster lives."""
        if self._lease is not None:
            self._lease.renew()

    async def drain(self) -> None:
        """Ends supervision and waits for the open sessions; new ones are refused."""
        await self.start()
        await self._end_supervision()
        timeout_s = self._spec.drain_timeout_s
        # Requests under way at a gateway have a session at a router, which goes on.
        fronts: tuple[ReplicaRole, ...] = ("gateway", "router")
        await self._for_each(fronts, lambda name: self._hosts.drain(name, timeout_s))
        # No router sends them anything now.
        await self._for_each(
            supervision.WORKER_ROLES, lambda name: self._hosts.drain(name, DRAIN_MARGIN_S)
        )

    async def stop(self) -> None:
        """Ends all actors but this one, gracefully if possible, and all their processes."""
        await self.start()
        await self._end_supervision()
        await self._for_each(("gateway", "router"), self._hosts.stop)
        # Concurrently: an engine takes some seconds to end.
        await self._for_each(supervision.WORKER_ROLES, self._hosts.stop)
        names = {*self._roles, *self._supervisor.fleet}
        await asyncio.gather(*(self._hosts.clean(name, EXIT_GRACE_S) for name in names))
        await self._http.close()
        for task in self._more:
            if task is not asyncio.current_task():
                task.cancel()
        await self._store.delete()

    async def _end_with_lease(self, lease: Lease) -> None:
        await lease.lapsed()
        _log.error(
            "lease_lapsed lease_s=%s (`up` has not renewed it: the cluster ends)",
            self._spec.lease_s,
        )
        await self.drain()
        await self.stop()
        ray.kill(ray.get_runtime_context().current_actor)

    async def _end_supervision(self) -> None:
        if self._run is not None:
            self._run.cancel()
            await asyncio.wait([self._run])
            self._run = None

    async def _for_each(
        self, roles: tuple[ReplicaRole, ...], act: Callable[[str], Awaitable[None]]
    ) -> None:
        fleet = self._supervisor.fleet.values()
        await asyncio.gather(*(act(r.name) for r in fleet if r.role in roles and r.is_alive))

    # -- for operators -----------------------------------------------------

    def _retry(self, name: str | None) -> list[str]:
        return self._supervisor.retry(None if name is None else self._known(name))

    def _drain_one(self, name: str, timeout_s: float | None, stays_away: bool) -> list[str]:
        known = self._known(name)
        return [known] * self._supervisor.drain(known, timeout_s, stays_away=stays_away)

    def _known(self, name: str) -> str:
        if name not in self._supervisor.fleet:
            raise InvalidRequestError(
                f"no router or worker is called {name!r}; there are"
                f" {', '.join(self._supervisor.fleet)}",
                reason="UNKNOWN_WORKER",
                field="name",
            )
        return name

    # -- state -------------------------------------------------------------

    def _prefill_replicas(self) -> list[supervision.Replica]:
        return [r for r in self._supervisor.fleet.values() if r.role in PREFILLING]

    def _record(self) -> None:
        fleet = self._supervisor.fleet
        self._metrics.record(fleet)
        # Kept after the successor is ready, to explain the restarts.
        self._last_ends |= {r.name: LastEnd(r.reason, r.cause) for r in fleet.values() if r.reason}
        self._store.changed()

    def _state(self) -> SavedState:
        return SavedState(
            fleet=dict(self._supervisor.fleet),
            addresses=dict(self._supervisor.addresses),
            policy=self._choice.name,
            last_ends=dict(self._last_ends),
            num_controllers=self._num_controllers,
            rollout=self._rolling.rollout,
            http_address=self._http.address,
            loop_s=self._clock.monotonic_s(),
            wall_s=self._clock.wall_s(),
        )

    def _status(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "cluster_id": self._spec.cluster_id,
            "policy": self._policy.chosen,
            "controller_restarts": self._num_controllers - 1,
            "rollout": self._rolling.describe(),
            "http_address": self._http.address,
            **describe_fleet(self._supervisor, self._last_ends),
        }


def _configured_policy(launches: tuple[Launch, ...]) -> PolicyChoice:
    """Returns the policy, which is the same for all workers that prefill, and what may replace it."""
    specs = [launch.spec for launch in launches if launch.role in PREFILLING]
    assert isinstance(specs[0], WorkerSpec)
    options = specs[0].options.prefill
    return PolicyChoice(options.policy, options.import_paths)
