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
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import ray

from prefill_worker.policy_loading import require_policy
from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster import controller_end, preflight, ray_runtime
from stream2llm.cluster.cluster_ray import ClusterRay
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.controller import ControllerSpec
from stream2llm.cluster.controller_calls import ANSWER_TIMEOUT_S, ControllerCalls
from stream2llm.cluster.controller_start import (
    create_controller,
    find_controller,
    require_free,
    wait_started,
)
from stream2llm.cluster.controller_watch import ControllerWatch, Report
from stream2llm.cluster.layout import Factories, common_environment, lay_out
from stream2llm.cluster.lease import LeaseKeeper
from stream2llm.cluster.prefill_policy import PolicyState
from stream2llm.cluster.ray_checks import check_ray
from stream2llm.cluster.ray_nodes import ray_state
from stream2llm.serving.system.processes import kill_owned


class Cluster:
    """A running cluster. Build it with `start` or `attach`."""

    def __init__(self, config: ClusterConfig, cluster_id: str, *, owns_ray: bool) -> None:
        self.config = config
        self.cluster_id = cluster_id
        self.http_address = ""
        # What workers want to hear from their callers; empty for a cluster that was attached to.
        self.worker_token = ""
        self._ray = ClusterRay(config, cluster_id, is_own=owns_ray)
        self._calls: ControllerCalls | None = None
        self._lease: LeaseKeeper | None = None
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
            calls = ControllerCalls(find_controller(config.ray.namespace), log_dir)
            status = calls.ask("status", timeout_s=ANSWER_TIMEOUT_S)
        except BaseException:
            ray_runtime.disconnect()
            raise
        cluster = cls(config, status["cluster_id"], owns_ray=False)
        cluster._calls = calls
        cluster._ray.connected(log_dir)
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

    def _start(self, model_path: Path | None, *, detach: bool, factories: Factories) -> None:
        atexit.register(self.stop, drain=False)
        if ray.is_initialized():
            raise InvalidRequestError("this process already uses a Ray; end that one first")
        self._ray.start()
        environment = common_environment()
        self.worker_token = secrets.token_urlsafe(32)
        launches = lay_out(
            self.config, model_path, environment, factories, cluster_token=self.worker_token
        )
        require_free(self.config.ray.namespace)
        check_ray(self.config, ray_state().nodes)
        # A Ray of our own ends with this process, and everything with it.
        lease_s = None if detach or self._ray.is_own else self.config.controller.lease_s
        spec = ControllerSpec(
            cluster_id=self.cluster_id,
            launches=launches,
            config=self.config.controller,
            drain_timeout_s=self.config.router.drain_timeout_s,
            security=self.config.security,
            logs=self.config.observability.logs,
            lease_s=lease_s,
        )
        self._calls = ControllerCalls(create_controller(spec, environment), self.log_dir)
        if lease_s is not None:
            self._lease = LeaseKeeper(lease_s, self._calls.handle.renew.remote)  # answers to none
            self._lease.start()
        self.http_address = wait_started(self._calls)

    # -- while it runs -----------------------------------------------------

    @property
    def log_dir(self) -> str:
        """Where Ray writes the logs of this node."""
        return self._ray.log_dir

    @property
    def router_addresses(self) -> tuple[str, ...]:
        """host:port of each router that is up."""
        replicas = self.status()["replicas"]
        routers = [r for r in replicas if r["role"] == "router" and r["address"]]
        return tuple(r["address"]["grpc_address"] for r in routers)

    @property
    def gateway_urls(self) -> tuple[str, ...]:
        """The base URL of OpenAI's API at each gateway that is up."""
        scheme = "http" if self.config.security.tls is None else "https"
        replicas = self.status()["replicas"]
        gateways = [r for r in replicas if r["role"] == "gateway" and r["address"]]
        return tuple(f"{scheme}://{r['address']['http_address']}/v1" for r in gateways)

    @property
    def ray_token_file(self) -> Path | None:
        """The file with the token of a Ray that we started; None for a joined one.

        Ray's commands take it in RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token.
        """
        return self._ray.token_file

    def wait_ready(self, timeout_s: float, report: Report | None = None) -> None:
        """Returns when every replica is ready; raises when one is given up, with its reason.

        Calls `report` with one line per event meanwhile.
        """
        self._while_running().wait_ready(timeout_s, report)

    def follow(self, report: Report) -> None:
        """Reports events from now on; returns only by exception.

        Raises UnavailableError (RAY_LOST) when a Ray of our own has ended.
        """
        self._while_running().follow(report)

    def wait_change(self, seen: int, timeout_s: float | None = None) -> dict[str, Any]:
        """Returns the status with the new `events`, once there are more than `seen`.

        A controller that was started again counts from 0, and returns all that it has.
        """
        return self._while_running().wait_change(seen, timeout_s)

    def status(self) -> dict[str, Any]:
        """Returns what /status shows."""
        return self._while_running().status()

    def set_policy(self, policy: str) -> PolicyState:
        """Switches the scheduling policy of all prefill workers; sessions continue."""
        name = require_policy(policy, self.config.prefilling[1].import_paths)
        state: PolicyState = self._controller.ask("set_policy", name, timeout_s=ANSWER_TIMEOUT_S)
        return state

    def _while_running(self) -> ControllerWatch:
        return ControllerWatch(self._controller, self.log_dir)

    @property
    def _controller(self) -> ControllerCalls:
        assert self._calls is not None
        return self._calls

    # -- the end -----------------------------------------------------------

    def drain(self) -> None:
        """Refuses new sessions and waits for the open ones, at most the configured time."""
        controller_end.drain(self._controller, self.config.router.drain_timeout_s)

    def stop(self, *, drain: bool = True) -> None:
        """Ends all actors and processes of this cluster; may be called again."""
        if self._stopped:
            return
        if self._lease is not None:
            self._lease.close()
        if self._ray.is_connected:
            if not ray_runtime.is_whole():
                kill_owned(f"{self.cluster_id}/")  # there is no controller to ask
            elif self._calls is not None and ray.is_initialized():
                if drain:
                    self.drain()
                controller_end.stop(self._calls)
            self._ray.end(has_controller=self._calls is not None)
        self._ray.release()
        self._stopped = True
        atexit.unregister(self.stop)

    def detach(self) -> None:
        """Leaves the cluster running and disconnects."""
        self._stopped = True
        atexit.unregister(self.stop)
        ray_runtime.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self.stop(drain=exc_type is None)
