"""A whole cluster from a configuration: starts it, waits for it, inspects it, ends it.

    with Cluster.start(config) as cluster:
        cluster.wait_ready(timeout_s=300)
        ... cluster.router_addresses ...

Synchronous: for the command line, tests and notebooks. With `address: local` it starts
its own Ray and ends it; otherwise it joins one and ends its own actors only. Every
process that it causes has the cluster's id in its environment, so `stop` can verify
that none is left.

On a Ray that was joined the actors outlive this process: a lease, which it renews while it
lives, ends them after its death, unless the cluster is detached.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prefill_worker.policy_loading import require_policy
from stream2llm.api.errors import InvalidRequestError, Stream2LLMError, UnavailableError
from stream2llm.cluster import preflight, ray_auth, ray_runtime, ray_sessions
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.controller import CONTROLLER_NAME, Controller, ControllerSpec
from stream2llm.cluster.controller_calls import ControllerCalls
from stream2llm.cluster.layout import Factories, common_environment, lay_out
from stream2llm.cluster.lease import LeaseKeeper
from stream2llm.cluster.prefill_policy import PolicyState
from stream2llm.cluster.ray_checks import check_ray
from stream2llm.cluster.ray_hosts import DRAIN_MARGIN_S, GRACEFUL_STOP_S
from stream2llm.cluster.ray_nodes import ray_state
from stream2llm.serving.clock import SystemClock
from stream2llm.serving.placement import Placement
from stream2llm.serving.processes import kill_owned, mark_environment, owner_mark

_log = logging.getLogger(__name__)

# For calls that the controller answers at once, on a busy machine.
STATUS_TIMEOUT_S = 120.0

Report = Callable[[str], None]


class Cluster:
    """A running cluster. Build it with `start` or `attach`."""

    def __init__(self, config: ClusterConfig, cluster_id: str, *, owns_ray: bool) -> None:
        self.config = config
        self.cluster_id = cluster_id
        self.log_dir = ""
        self.http_address = ""
        # What workers want to hear from their callers; empty for a cluster that was attached to.
        self.worker_token = ""
        self._owns_ray = owns_ray
        self._calls: ControllerCalls | None = None
        self._lease: LeaseKeeper | None = None
        # Of the folder of a Ray of our own.
        self._session_lock: int | None = None
        self._connected = False
        self._stopped = False

    # -- beginning ---------------------------------------------------------

    @classmethod
    def start(
        cls,
        config: ClusterConfig,
        *,
        detach: bool = False,
        factories: Factories | None = None,
        on_checked: Callable[[], None] = lambda: None,
    ) -> Self:
        """Checks, then starts everything and returns at once; see `wait_ready`.

        With `detach` the actors outlive this process, which needs a Ray that does too.
        `factories` is for tests: what the actors host. `on_checked` is called between the two.
        """
        owns_ray = config.ray.address == "local"
        if detach and owns_ray:
            raise InvalidRequestError(
                "a Ray that this command starts ends with it: --detach needs one that runs already"
                " (--address auto, or ray.address)"
            )
        model_path = preflight.check(config, on_this_machine=owns_ray, runs_vllm=factories is None)
        on_checked()
        cluster = cls(config, uuid.uuid4().hex[:12], owns_ray=owns_ray)
        try:
            cluster._start(model_path, detach=detach, factories=factories or Factories())
        except BaseException:
            cluster.stop(drain=False)
            raise
        return cluster

    @classmethod
    def attach(cls, config: ClusterConfig) -> Self:
        """Finds a cluster that `start(detach=True)` left running."""
        if config.ray.address == "local":
            raise InvalidRequestError("ray.address is local: give the address of a running Ray")
        log_dir = ray_runtime.connect(config, "", "")
        try:
            handle = ray.get_actor(CONTROLLER_NAME, namespace=config.ray.namespace)
            calls = ControllerCalls(handle, log_dir)
            status = calls.ask("status", timeout_s=STATUS_TIMEOUT_S)
        except ValueError as error:
            reason = _without_controller(config.ray.namespace)
            ray_runtime.disconnect()
            raise UnavailableError(reason, reason="NO_CLUSTER") from error
        except BaseException:
            ray_runtime.disconnect()
            raise
        cluster = cls(config, status["cluster_id"], owns_ray=False)
        cluster._calls = calls
        cluster._connected = True
        cluster.log_dir = log_dir
        cluster.http_address = status["http_address"]
        return cluster

    @classmethod
    def end_orphans(cls, config: ClusterConfig) -> list[str]:
        """Ends actors in the namespace that have no controller; returns their names."""
        ray_runtime.connect(config, "", "")
        try:
            orphans = ray_runtime.actors_of(config.ray.namespace)
            for cluster_id in sorted({name.cluster_id for name in orphans}):
                ray_runtime.kill_actors_of(config.ray.namespace, cluster_id)
            return sorted(name.replica for name in orphans)
        finally:
            ray_runtime.disconnect()

    def _start(self, model_path: Path, *, detach: bool, factories: Factories) -> None:
        atexit.register(self.stop, drain=False)
        if ray.is_initialized():
            raise InvalidRequestError("this process already uses a Ray; end that one first")
        self._connected = True  # from now on there may be something to end
        mark = owner_mark(self.cluster_id, "ray", 1)
        self.log_dir = ray_runtime.connect(self.config, self.cluster_id, mark)
        if self._owns_ray:
            self._session_lock = ray_sessions.hold(Path(self.log_dir).parent)
        environment = common_environment()
        self.worker_token = secrets.token_urlsafe(32)
        launches = lay_out(
            self.config, model_path, environment, factories, cluster_token=self.worker_token
        )
        self._check_ray()
        # A Ray of our own ends with this process, and everything with it.
        lease_s = None if detach or self._owns_ray else self.config.controller.lease_s
        spec = ControllerSpec(
            cluster_id=self.cluster_id,
            launches=launches,
            config=self.config.controller,
            drain_timeout_s=self.config.router.drain_timeout_s,
            security=self.config.security,
            logs=self.config.observability.logs,
            lease_s=lease_s,
        )
        self._calls = ControllerCalls(self._create_controller(spec, environment), self.log_dir)
        if lease_s is not None:
            self._lease = LeaseKeeper(lease_s, self._calls.handle.renew.remote)  # answers to none
            self._lease.start()
        self.http_address = self._start_controller()

    def _start_controller(self) -> str:
        """Returns its HTTP address; raises where Ray does not run it."""
        try:
            address: str = self._asked("start", timeout_s=STATUS_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError as error:
            raise UnavailableError(
                f"the controller has not started for {STATUS_TIMEOUT_S:.0f} s: has its node"
                " (controller.placement) room for it? `ray status` says what waits",
                reason="NOT_READY",
            ) from error
        return address

    def _create_controller(self, spec: ControllerSpec, environment: dict[str, str]) -> Any:
        mark = mark_environment(owner_mark(self.cluster_id, CONTROLLER_NAME, 1))
        actor: Any = Controller  # mypy cannot see that ray.remote has changed the class
        return actor.options(
            name=CONTROLLER_NAME,
            lifetime="detached",
            num_cpus=0,
            runtime_env={"env_vars": {**environment, **mark}},
            **self._place_of_controller(),
        ).remote(spec)

    def _place_of_controller(self) -> dict[str, Any]:
        """Options of Ray: where the configuration says, else on this node."""
        placement = self.config.controller.placement
        if placement == Placement():
            here = ray.get_runtime_context().get_node_id()
            return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}
        return {
            "resources": dict(placement.resources), "label_selector": dict(placement.labels),
        }  # fmt: skip

    def _check_ray(self) -> None:
        namespace = self.config.ray.namespace
        with suppress(ValueError):
            ray.get_actor(CONTROLLER_NAME, namespace=namespace)
            raise UnavailableError(
                f"a cluster already runs in namespace {namespace!r}: end it with"
                " `stream2llm down`, or set another ray.namespace",
                reason="ALREADY_RUNNING",
            )
        if ray_runtime.actors_of(namespace):
            raise UnavailableError(_without_controller(namespace), reason="ALREADY_RUNNING")
        check_ray(self.config, ray_state().nodes)

    # -- while it runs -----------------------------------------------------

    @property
    def router_addresses(self) -> tuple[str, ...]:
        """host:port of each router that is up."""
        replicas = self.status()["replicas"]
        routers = [r for r in replicas if r["role"] == "router" and r["address"]]
        return tuple(r["address"]["grpc_address"] for r in routers)

    @property
    def ray_token_file(self) -> Path | None:
        """The file with the token of a Ray that we started; None for a joined one.

        Ray's commands take it in RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token.
        """
        has_token = self._owns_ray and self.config.ray.auth_mode == "token"
        return ray_auth.token_file(self.cluster_id) if has_token else None

    def wait_ready(self, timeout_s: float, report: Report | None = None) -> None:
        """Returns when every replica is ready; raises when one is given up, with its reason.

        Calls `report` with one line per event meanwhile.
        """
        clock = SystemClock()
        deadline_s = clock.monotonic_s() + timeout_s
        status = self.status()
        seen = 0
        while not status["ready"]:
            _raise_if_given_up(status)
            status = self._watch(seen, deadline_s - clock.monotonic_s(), status, timeout_s)
            seen = _report_events(status, report)

    def follow(self, report: Report) -> None:
        """Reports events from now on; returns only by exception.

        Raises UnavailableError (RAY_LOST) when a Ray of our own has ended.
        """
        seen = self.status()["num_events"]

        def is_away() -> None:
            report("controller has died: sessions go on; Ray starts it again")

        while True:
            status = self._asked("watch", seen, on_away=is_away)
            seen = _report_events(status, report)

    def wait_change(self, seen: int, timeout_s: float | None = None) -> dict[str, Any]:
        """Returns the status with the new `events`, once there are more than `seen`.

        A controller that was started again counts from 0, and returns all that it has.
        """
        status: dict[str, Any] = self._asked("watch", seen, timeout_s=timeout_s)
        return status

    def status(self) -> dict[str, Any]:
        """Returns what /status shows."""
        try:
            status: dict[str, Any] = self._asked("status", timeout_s=STATUS_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError as error:
            raise UnavailableError(
                f"the controller gave no answer for {STATUS_TIMEOUT_S:.0f} s (logs: {self.log_dir})",
                reason="CONTROLLER_LOST",
            ) from error
        return status

    def set_policy(self, policy: str) -> PolicyState:
        """Switches the scheduling policy of all prefill workers; sessions continue."""
        name = require_policy(policy, self.config.prefill.import_paths)
        state: PolicyState = self._asked("set_policy", name, timeout_s=STATUS_TIMEOUT_S)
        return state

    def _watch(
        self, seen: int, left_s: float, status: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        try:
            return self.wait_change(seen, max(0.01, left_s))
        except ray.exceptions.GetTimeoutError as error:
            late = [f"{r['name']} ({r['phase']}) {r['reason']}" for r in status["replicas"]
                    if r["phase"] != "ready"]  # fmt: skip
            raise UnavailableError(
                f"the cluster is not ready after {timeout_s:.0f} s; missing: {', '.join(late)};"
                f" logs: {self.log_dir}",
                reason="NOT_READY",
            ) from error

    def _asked(
        self,
        method: str,
        *arguments: Any,
        timeout_s: float | None = None,
        on_away: Callable[[], None] = lambda: None,
    ) -> Any:
        """See `ControllerCalls.ask`."""
        assert self._calls is not None
        return self._calls.ask(method, *arguments, timeout_s=timeout_s, on_away=on_away)

    # -- the end -----------------------------------------------------------

    def drain(self) -> None:
        """Refuses new sessions and waits for the open ones, at most the configured time."""
        longest_s = self.config.router.drain_timeout_s + 4 * DRAIN_MARGIN_S
        try:
            self._finish("drain", longest_s)
        except (ray.exceptions.RayError, Stream2LLMError) as error:
            _log.warning("no_graceful_drain error=%s", error)

    def _finish(self, method: str, timeout_s: float) -> None:
        """Waits for a call, but not for one that a dead Ray will never answer.

        A signal to the whole process group (systemd, `timeout`) ends Ray too.
        """
        assert self._calls is not None
        self._calls.ask(method, timeout_s=timeout_s, needs=ray_runtime.RAYLET)

    def stop(self, *, drain: bool = True) -> None:
        """Ends all actors and processes of this cluster; may be called again."""
        if self._stopped:
            return
        if self._lease is not None:
            self._lease.close()
        if self._connected:
            if not ray_runtime.is_whole():
                kill_owned(f"{self.cluster_id}/")  # there is no controller to ask
            elif self._calls is not None and ray.is_initialized():
                self._stop_actors(drain=drain)
            self._end_ray()
        if self._session_lock is not None:
            os.close(self._session_lock)
        self._stopped = True
        atexit.unregister(self.stop)

    def _stop_actors(self, *, drain: bool) -> None:
        if drain:
            self.drain()
        assert self._calls is not None
        try:
            self._finish("stop", 4 * GRACEFUL_STOP_S)
        except Exception as error:  # a dead controller, or a dead Ray; the rest is killed
            _log.warning("no_graceful_stop error=%s", error)
        with suppress(ray.exceptions.RayError):
            ray.kill(self._calls.handle)

    def detach(self) -> None:
        """Leaves the cluster running and disconnects."""
        self._stopped = True
        atexit.unregister(self.stop)
        ray_runtime.disconnect()

    def _end_ray(self) -> None:
        # In our own, ray.shutdown ends actors too; without a controller there are none.
        if not self._owns_ray and self._calls is not None and ray.is_initialized():
            ray_runtime.kill_actors_of(self.config.ray.namespace, self.cluster_id)
        ray_runtime.disconnect(self.cluster_id if self._owns_ray else "")
        left = kill_owned(f"{self.cluster_id}/")
        if left:
            _log.warning("killed_leftovers processes=%s", left)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self.stop(drain=exc_type is None)


def _without_controller(namespace: str) -> str:
    """What to say where no controller is."""
    orphans = sorted(name.replica for name in ray_runtime.actors_of(namespace))
    if not orphans:
        return f"no cluster runs in namespace {namespace!r} of this Ray"
    return (
        f"namespace {namespace!r} of this Ray has actors without a controller"
        f" ({', '.join(orphans)}): end them with `stream2llm down`"
    )


# -- reports ---------------------------------------------------------------


def _raise_if_given_up(status: dict[str, Any]) -> None:
    lost = [r for r in status["replicas"] if r["name"] in status["given_up"]]
    if lost:
        reasons = "; ".join(f"{r['name']}: {r['reason']}" for r in lost)
        raise UnavailableError(f"cannot start {reasons}", reason="START_FAILED")


def _report_events(status: dict[str, Any], report: Report | None) -> int:
    for event in status["events"] if report else ():
        assert report is not None
        report(event)
    num_events: int = status["num_events"]
    return num_events
