"""A whole cluster from a configuration: starts it, waits for it, inspects it, ends it.

    with Cluster.start(config) as cluster:
        cluster.wait_ready(timeout_s=300)
        ... cluster.router_addresses ...

Synchronous: for the command line, tests and notebooks. With `address: local` it starts
its own Ray and ends it; otherwise it joins one and ends its own actors only. Every
process that it causes has the cluster's id in its environment, so `stop` can verify
that none is left.
"""

from __future__ import annotations

import atexit
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prefill_worker.policy_loading import require_policy
from stream2llm.api.errors import (
    InternalError,
    InvalidRequestError,
    Stream2LLMError,
    UnavailableError,
)
from stream2llm.cluster import preflight, ray_auth, ray_runtime
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.controller import (
    CONTROLLER_NAME,
    DRAIN_MARGIN_S,
    GRACEFUL_STOP_S,
    Controller,
    ControllerSpec,
)
from stream2llm.cluster.layout import Factories, common_environment, lay_out
from stream2llm.cluster.prefill_policy import PolicyState
from stream2llm.serving.clock import SystemClock
from stream2llm.serving.launch import Launch
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
        self._owns_ray = owns_ray
        self._controller: Any = None
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
    ) -> Self:
        """Checks, then starts everything and returns at once; see `wait_ready`.

        With `detach` the actors outlive this process, which needs a Ray that does too.
        `factories` is for tests: what the actors host.
        """
        owns_ray = config.ray.address == "local"
        if detach and owns_ray:
            raise InvalidRequestError("a local Ray ends with us: detach needs ray.address: auto")
        model_path = preflight.check(config, on_this_machine=owns_ray, runs_vllm=factories is None)
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
        ray_runtime.connect(config, "", "")
        try:
            controller = ray.get_actor(CONTROLLER_NAME, namespace=config.ray.namespace)
            status = ray.get(controller.status.remote(), timeout=STATUS_TIMEOUT_S)
        except (ValueError, ray.exceptions.RayError) as error:
            ray_runtime.disconnect()
            raise UnavailableError(
                f"no cluster runs in namespace {config.ray.namespace!r} of this Ray:"
                f" {ray_runtime.first_line(error)}"
            ) from error
        cluster = cls(config, status["cluster_id"], owns_ray=False)
        cluster._controller = controller
        cluster._connected = True
        cluster.http_address = status["http_address"]
        return cluster

    def _start(self, model_path: Path, *, detach: bool, factories: Factories) -> None:
        atexit.register(self.stop, drain=False)
        if ray.is_initialized():
            raise InvalidRequestError("this process already uses a Ray; end that one first")
        self._connected = True  # from now on there may be something to end
        mark = owner_mark(self.cluster_id, "ray", 1)
        self.log_dir = ray_runtime.connect(self.config, self.cluster_id, mark)
        environment = common_environment()
        launches = lay_out(self.config, model_path, environment, factories)
        self._check_ray(launches)
        # In our own Ray the actors need no owner: they end with it.
        spec = ControllerSpec(
            cluster_id=self.cluster_id,
            launches=launches,
            config=self.config.controller,
            drain_timeout_s=self.config.router.drain_timeout_s,
            detached=detach or self._owns_ray,
        )
        self._controller = self._create_controller(spec, environment)
        self.http_address = ray.get(self._controller.start.remote())

    def _create_controller(self, spec: ControllerSpec, environment: dict[str, str]) -> Any:
        mark = mark_environment(owner_mark(self.cluster_id, CONTROLLER_NAME, 1))
        here = ray.get_runtime_context().get_node_id()
        actor: Any = Controller  # mypy cannot see that ray.remote has changed the class
        return actor.options(
            name=CONTROLLER_NAME,
            lifetime="detached" if spec.detached else None,
            num_cpus=0,
            runtime_env={"env_vars": {**environment, **mark}},
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
        ).remote(spec)

    def _check_ray(self, launches: tuple[Launch, ...]) -> None:
        namespace = self.config.ray.namespace
        with suppress(ValueError):
            ray.get_actor(CONTROLLER_NAME, namespace=namespace)
            raise UnavailableError(
                f"a cluster already runs in namespace {namespace!r}: end it with"
                " `stream2llm down`, or set another ray.namespace",
                reason="ALREADY_RUNNING",
            )
        ray_runtime.check_gpus(launches, can_grow=not self._owns_ray)
        hosts = (self.config.router.host, self.config.prefill.host, self.config.decode.host)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if len(nodes) > 1 and any(host.startswith("127.") for host in hosts):
            raise InvalidRequestError(
                f"this Ray has {len(nodes)} nodes, which do not reach each other at {hosts}:"
                " set router.host, prefill.host and decode.host to auto"
            )

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
        """Reports events from now on; returns only by exception."""
        seen = self.status()["num_events"]
        while True:
            seen = _report_events(self.wait_change(seen), report)

    def wait_change(self, seen: int, timeout_s: float | None = None) -> dict[str, Any]:
        """Returns the status with the new `events`, once there are more than `seen`."""
        status: dict[str, Any] = self._ask(self._controller.watch.remote(seen), timeout_s)
        return status

    def status(self) -> dict[str, Any]:
        """Returns what /status shows."""
        try:
            status: dict[str, Any] = self._ask(self._controller.status.remote(), STATUS_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError as error:
            raise UnavailableError(
                f"the controller gave no answer for {STATUS_TIMEOUT_S:.0f} s (logs: {self.log_dir})",
                reason="CONTROLLER_LOST",
            ) from error
        return status

    def set_policy(self, policy: str) -> PolicyState:
        """Switches the scheduling policy of all prefill workers; sessions continue."""
        name = require_policy(policy, self.config.prefill.import_paths)
        state: PolicyState = self._ask(self._controller.set_policy.remote(name), STATUS_TIMEOUT_S)
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

    def _ask(self, call: Any, timeout_s: float | None = None) -> Any:
        try:
            return ray.get(call, timeout=timeout_s)
        except ray.exceptions.ActorDiedError as error:
            raise InternalError(
                "the controller has died: sessions go on, but a worker that dies is not"
                f" replaced; restart the cluster (logs: {self.log_dir})",
                reason="CONTROLLER_LOST",
            ) from error
        except (Stream2LLMError, ray.exceptions.GetTimeoutError):  # the caller handles these
            raise
        except ray.exceptions.RayError as error:
            raise InternalError(
                f"the controller gives no answer: {ray_runtime.first_line(error)}"
                f" (logs: {self.log_dir})",
                reason="CONTROLLER_LOST",
            ) from error

    # -- the end -----------------------------------------------------------

    def drain(self) -> None:
        """Refuses new sessions and waits for the open ones, at most the configured time."""
        longest_s = self.config.router.drain_timeout_s + 4 * DRAIN_MARGIN_S
        try:
            self._finish(self._controller.drain.remote(), longest_s)
        except ray.exceptions.RayError as error:
            _log.warning("no_graceful_drain error=%s", error)

    def _finish(self, call: Any, timeout_s: float) -> None:
        """Waits for a call, but not for one that a dead Ray will never answer.

        A signal to the whole process group (systemd, `timeout`) ends Ray too.
        """
        clock = SystemClock()
        deadline_s = clock.monotonic_s() + timeout_s
        while not ray.wait([call], timeout=1.0)[0]:
            if not ray_runtime.is_whole() or clock.monotonic_s() > deadline_s:
                raise ray.exceptions.GetTimeoutError("Ray is gone, or the time is over")
        ray.get(call)

    def stop(self, *, drain: bool = True) -> None:
        """Ends all actors and processes of this cluster; may be called again."""
        if self._stopped:
            return
        if self._connected:
            if not ray_runtime.is_whole():
                kill_owned(f"{self.cluster_id}/")  # there is no controller to ask
            elif self._controller is not None and ray.is_initialized():
                self._stop_actors(drain=drain)
            self._end_ray()
        self._stopped = True
        atexit.unregister(self.stop)

    def _stop_actors(self, *, drain: bool) -> None:
        if drain:
            self.drain()
        try:
            self._finish(self._controller.stop.remote(), 4 * GRACEFUL_STOP_S)
            ray.kill(self._controller)
        except Exception as error:  # a dead controller, or a dead Ray; the rest is killed
            _log.warning("no_graceful_stop error=%s", error)

    def detach(self) -> None:
        """Leaves the cluster running and disconnects."""
        self._stopped = True
        atexit.unregister(self.stop)
        ray_runtime.disconnect()

    def _end_ray(self) -> None:
        if not self._owns_ray:  # in our own, ray.shutdown ends actors too
            ray_runtime.kill_actors_of(self.config.ray.namespace, self._controller)
        ray_runtime.disconnect(self.cluster_id if self._owns_ray else "")
        left = kill_owned(f"{self.cluster_id}/")
        if left:
            _log.warning("killed_leftovers processes=%s", left)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(drain=exc_type is None)


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
