"""Creates the controller of a new cluster in Ray, and finds the one of a running cluster."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stream2llm.api.errors import UnavailableError
from stream2llm.cluster import ray_runtime
from stream2llm.cluster.controller import CONTROLLER_NAME, Controller, ControllerSpec
from stream2llm.cluster.controller_calls import ANSWER_TIMEOUT_S, ControllerCalls
from stream2llm.serving.settings.placement import Placement
from stream2llm.serving.system.processes import mark_environment, owner_mark


def require_free(namespace: str) -> None:
    """Raises UnavailableError when a cluster, or what is left of one, is in the namespace."""
    with suppress(ValueError):
        ray.get_actor(CONTROLLER_NAME, namespace=namespace)
        raise UnavailableError(
            f"a cluster already runs in namespace {namespace!r}: end it with"
            " `stream2llm down`, or set another ray.namespace",
            reason="ALREADY_RUNNING",
        )
    if ray_runtime.actors_of(namespace):
        raise UnavailableError(_without_controller(namespace), reason="ALREADY_RUNNING")


def find_controller(namespace: str) -> Any:
    """Returns the handle of the running controller; raises UnavailableError without one."""
    try:
        return ray.get_actor(CONTROLLER_NAME, namespace=namespace)
    except ValueError as error:
        raise UnavailableError(_without_controller(namespace), reason="NO_CLUSTER") from error


def _without_controller(namespace: str) -> str:
    """What to say where no controller is."""
    orphans = sorted(name.replica for name in ray_runtime.actors_of(namespace))
    if not orphans:
        return f"no cluster runs in namespace {namespace!r} of this Ray"
    return (
        f"namespace {namespace!r} of this Ray has actors without a controller"
        f" ({', '.join(orphans)}): end them with `stream2llm down`"
    )


def create_controller(spec: ControllerSpec, environment: dict[str, str]) -> Any:
    """Creates the actor, which may wait for a place; returns its handle."""
    mark = mark_environment(owner_mark(spec.cluster_id, CONTROLLER_NAME, 1))
    actor: Any = Controller  # mypy cannot see that ray.remote has changed the class
    return actor.options(
        name=CONTROLLER_NAME,
        lifetime="detached",
        num_cpus=0,
        runtime_env={"env_vars": {**environment, **mark}},
        **_place(spec.config.placement),
    ).remote(spec)


def _place(placement: Placement) -> dict[str, Any]:
    """Options of Ray: where the configuration says, else on this node."""
    if placement == Placement():
        here = ray.get_runtime_context().get_node_id()
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}
    return {
        "resources": dict(placement.resources), "label_selector": dict(placement.labels),
    }  # fmt: skip


def wait_started(controller: ControllerCalls) -> str:
    """Returns host:port of the controller's HTTP; raises where Ray does not run it."""
    try:
        address: str = controller.ask("start", timeout_s=ANSWER_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError as error:
        raise UnavailableError(
            f"the controller has not started for {ANSWER_TIMEOUT_S:.0f} s: has its node"
            " (controller.placement) room for it? `ray status` says what waits",
            reason="NOT_READY",
        ) from error
    return address
