"""From a configuration to what must run: one Launch for each router and worker.

Pure. Also the environment of each actor, in one place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.gateway_config import GatewayConfig
from stream2llm.cluster.worker_config import WorkerConfig
from stream2llm.models.context_length import context_length
from stream2llm.serving.settings.gateway_spec import GatewaySpec
from stream2llm.serving.settings.launch import Launch, cores_of
from stream2llm.serving.settings.router_spec import RouterSpec
from stream2llm.serving.settings.worker_spec import Role, WorkerSpec

# Routers and gateways wait most of the time; they take no CPU from Ray's books.
ROUTER_CPUS = 0.0
# vLLM's batch-invariant mode.
DETERMINISTIC_VARIABLE = "VLLM_BATCH_INVARIANT"

# Nothing calls home, no model is looked up on the network, and the runner is
# the one whose slots our scheduler knows.
_COMMON_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


@dataclass(frozen=True, slots=True)
class Factories:
    """Dotted paths of the classes that actors host; tests put fakes here."""

    router: str = "router.server:Router"
    prefill: str = "prefill_worker.worker:Worker"
    decode: str = "decode_worker.worker:Worker"
    mixed: str = "prefill_worker.worker:Worker"
    gateway: str = "stream2llm.gateway.server:Gateway"


def lay_out(
    config: ClusterConfig,
    model_path: Path | None,
    environment: Mapping[str, str],
    factories: Factories,
    *,
    cluster_token: str = "",
) -> tuple[Launch, ...]:
    """Everything that must run. `environment` goes to all; a role's own wins.

    Without a `model_path` each node looks for the model itself.

    Workers serve only who knows `cluster_token`, if there is one.
    """
    max_model_len = served_max_model_len(config, model_path)
    routers = [
        _router(config, model_path, index, max_model_len, dict(environment), factories.router)
        for index in range(config.router.replicas)
    ]
    workers: list[Launch] = []
    for role, section in config.worker_sections:
        factory: str = getattr(factories, role)
        first_core = len(workers)
        workers += _workers(config, role, section, model_path, environment, factory, first_core)
    gateways = [
        _gateway(config, part, index, model_path, dict(environment), factories.gateway)
        for part in (config.gateway,)
        if part is not None
        for index in range(part.replicas)
    ]
    launches = (*routers, *gateways, *workers)
    drain_timeout_s = config.router.drain_timeout_s
    return tuple(
        replace(_with_token(launch, cluster_token), drain_timeout_s=drain_timeout_s)
        for launch in launches
    )


def _with_token(launch: Launch, token: str) -> Launch:
    return replace(launch, spec=replace(launch.spec, cluster_token=token))


def stand_in(launch: Launch, name: str) -> Launch:
    """One more worker like this, of another name, for the time in which this one is replaced."""
    assert isinstance(launch.spec, WorkerSpec), "only workers get one"
    return replace(launch, name=name, spec=replace(launch.spec, worker_id=name, metrics_port=0))


def common_environment() -> dict[str, str]:
    """What every actor of ours runs with, beside what it inherits of its Ray."""
    variables = dict(_COMMON_ENVIRONMENT)
    root = Path(__file__).resolve().parents[2]
    if root.name != "site-packages":  # a checkout, or the working_dir of a Ray job
        inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        others = [os.path.abspath(path) for path in inherited if path and path != str(root)]
        variables["PYTHONPATH"] = os.pathsep.join([str(root), *others])
    return variables


def served_max_model_len(config: ClusterConfig, model_path: Path | None) -> int:
    """The context that all roles can take; 0 where only a model that is not here says it."""
    roles = [_max_model_len(role, part.engine) for role, part in config.worker_sections]
    # Read in any case: a directory that is no model's is refused here.
    of_model = None if model_path is None else context_length(model_path)
    if None in roles:
        roles.append(of_model)
    return min((length for length in roles if length is not None), default=0)


def _max_model_len(role: str, engine: Mapping[str, Any]) -> int | None:
    value = engine.get("max_model_len")
    if value is None or (isinstance(value, int) and value > 0):
        return value
    key = f"{role}.engine.max_model_len"
    message = f"{key} must be a number of tokens, at least 1, not {value!r}"
    raise InvalidRequestError(message, reason="BAD_ARGUMENT", field=key)


def _router(
    config: ClusterConfig,
    model_path: Path | None,
    index: int,
    max_model_len: int,
    environment: dict[str, str],
    factory: str,
) -> Launch:
    part = config.router
    spec = RouterSpec(
        router_id=f"router-{index}",
        host=part.host,
        port=part.port_of(part.port, index),
        metrics_port=part.port_of(part.metrics_port, index),
        model_name=config.model_name,
        model_path=str(model_path or ""),
        model=config.model,
        limits=part.limits,
        ttft_slo_ms=part.ttft_slo_ms,
        recovery=part.recovery,
        admission=part.admission,
        drain_timeout_s=part.drain_timeout_s,
        max_model_len=max_model_len,
        handover=config.handover_mode,
        security=config.security,
        observability=config.observability,
        router_index=index,
        num_routers=part.replicas,
    )
    return Launch(
        name=spec.router_id, role="router", factory=factory, spec=spec, cpu_bind=None,
        core_index=0, num_cpus=ROUTER_CPUS, num_gpus=0, start_timeout_s=120.0, environment=environment,
        placement=part.placement,
    )  # fmt: skip


def _gateway(
    config: ClusterConfig,
    part: GatewayConfig,
    index: int,
    model_path: Path | None,
    environment: dict[str, str],
    factory: str,
) -> Launch:
    spec = GatewaySpec(
        gateway_id=f"gateway-{index}",
        host=part.host,
        port=part.port_of(part.port, index),
        model_path=str(model_path or ""),
        model=config.model,
        tool_parser=part.tool_parser,
        reasoning_parser=part.reasoning_parser,
        web_folder=part.web_folder,
        max_message_bytes=config.router.limits.max_message_bytes,
        drain_timeout_s=config.router.drain_timeout_s,
        client_certificate=part.client_certificate,
        client_key=part.client_key,
        security=config.security,
        observability=config.observability,
    )
    return Launch(
        name=spec.gateway_id, role="gateway", factory=factory, spec=spec, cpu_bind=None,
        core_index=0, num_cpus=ROUTER_CPUS, num_gpus=0, start_timeout_s=120.0,
        environment=environment, placement=part.placement,
    )  # fmt: skip


def _workers(
    config: ClusterConfig,
    role: Role,
    part: WorkerConfig,
    model_path: Path | None,
    environment: Mapping[str, str],
    factory: str,
    first_core: int,
) -> list[Launch]:
    mode = {DETERMINISTIC_VARIABLE: "1"} if config.deterministic else {}
    return [
        Launch(
            name=f"{role}-{index}",
            role=role,
            factory=factory,
            spec=_worker_spec(config, part, role, model_path, index),
            cpu_bind=None if part.num_gpus else cores_or_auto(part.cpu_bind, index),
            core_index=first_core + index,
            num_cpus=part.num_cpus,
            num_gpus=part.num_gpus,
            start_timeout_s=part.start_timeout_s,
            environment={**environment, **part.env, **mode},
            placement=part.placement,
        )
        for index in range(part.replicas)
    ]


def cores_or_auto(cpu_bind: str, replica: int) -> str:
    """Leaves "auto" to the actor, which knows its node's cores."""
    return cpu_bind if cpu_bind == "auto" else cores_of(cpu_bind, replica, 0, ())


def _worker_spec(
    config: ClusterConfig,
    part: WorkerConfig,
    role: Role,
    model_path: Path | None,
    index: int,
) -> WorkerSpec:
    return WorkerSpec(
        worker_id=f"{role}-{index}",
        role=role,
        model_path=str(model_path or ""),
        model=config.model,
        host=part.host,
        metrics_port=_nth_port(part.metrics_port, index),
        engine_args=dict(part.engine),
        options=config.options_of(role),
        side_channel_port=0,  # the actor finds a free one on its node
        hung_after_s=part.hung_after_s,
        max_message_bytes=config.router.limits.max_message_bytes,
        security=config.security,
        observability=config.observability,
    )


def _nth_port(first: int, index: int) -> int:
    return first + index if first else 0
