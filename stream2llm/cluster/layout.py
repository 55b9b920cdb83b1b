"""From a configuration to what must run: one Launch for each router and worker.

Pure. Also the environment of each actor, in one place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.gateway_config import GatewayConfig
from stream2llm.cluster.worker_config import WorkerConfig
from stream2llm.engine.model_runner import runner_environment
from stream2llm.models.context_length import context_length
from stream2llm.models.names import has_name
from stream2llm.serving.settings.gateway_spec import GatewaySpec
from stream2llm.serving.settings.launch import Launch, cores_of
from stream2llm.serving.settings.placement import Placement
from stream2llm.serving.settings.router_spec import RouterSpec
from stream2llm.serving.settings.worker_spec import Role, WorkerSpec

# Routers and gateways wait most of the time; they take no CPU from Ray's books.
ROUTER_CPUS = 0.0
# vLLM's batch-invariant mode.
DETERMINISTIC_VARIABLE = "VLLM_BATCH_INVARIANT"

# Nothing calls home, and no model is looked up on the network.
_COMMON_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
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
    layout = _Layout(config, model_path, environment, factories)
    drain_timeout_s = config.router.drain_timeout_s
    return tuple(
        replace(_with_token(launch, cluster_token), drain_timeout_s=drain_timeout_s)
        for launch in layout.launches()
    )


def _with_token(launch: Launch, token: str) -> Launch:
    return replace(launch, spec=replace(launch.spec, cluster_token=token))


def stand_in(launch: Launch, name: str) -> Launch:
    """One more worker like this, of another name, for the time in which this one is replaced."""
    assert isinstance(launch.spec, WorkerSpec), "only workers get one"
    return replace(launch, name=name, spec=replace(launch.spec, worker_id=name, metrics_port=0))


def common_environment() -> dict[str, str]:
    """What every actor of ours runs with, beside what it inherits of its Ray."""
    variables = {**_COMMON_ENVIRONMENT, **runner_environment()}
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


@dataclass(frozen=True, slots=True)
class _Layout:
    config: ClusterConfig
    model_path: Path | None
    environment: Mapping[str, str]
    factories: Factories

    def launches(self) -> list[Launch]:
        max_model_len = served_max_model_len(self.config, self.model_path)
        routers = [
            self._router(index, max_model_len) for index in range(self.config.router.replicas)
        ]
        workers: list[Launch] = []
        for role, part in self.config.worker_sections:
            factory: str = getattr(self.factories, role)
            workers += self._workers(role, part, factory, len(workers))
        return [*routers, *self._gateways(self.config.gateway), *workers]

    def _router(self, index: int, max_model_len: int) -> Launch:
        part = self.config.router
        spec = RouterSpec(
            router_id=f"router-{index}",
            host=part.host,
            port=part.port_of(part.port, index),
            metrics_port=part.port_of(part.metrics_port, index),
            model_name=self.config.model_name,
            model_path=str(self.model_path or ""),
            model=self.config.model,
            limits=part.limits,
            ttft_slo_ms=part.ttft_slo_ms,
            recovery=part.recovery,
            admission=part.admission,
            drain_timeout_s=part.drain_timeout_s,
            max_model_len=max_model_len,
            handover=self.config.handover_mode,
            security=self.config.security,
            observability=self.config.observability,
            router_index=index,
            num_routers=part.replicas,
        )
        return self._front(spec.router_id, "router", self.factories.router, spec, part.placement)

    def _gateways(self, part: GatewayConfig | None) -> list[Launch]:
        return [self._gateway(part, index) for index in range(part.replicas)] if part else []

    def _gateway(self, part: GatewayConfig, index: int) -> Launch:
        spec = GatewaySpec(
            gateway_id=f"gateway-{index}",
            host=part.host,
            port=part.port_of(part.port, index),
            model_path=str(self.model_path or ""),
            model=self.config.model,
            tool_parser=part.tool_parser,
            reasoning_parser=part.reasoning_parser,
            web_folder=part.web_folder,
            max_message_bytes=self.config.router.limits.max_message_bytes,
            limits=part.limits,
            drain_timeout_s=self.config.router.drain_timeout_s,
            client_certificate=part.client_certificate,
            client_key=part.client_key,
            security=self.config.security,
            observability=self.config.observability,
        )
        return self._front(spec.gateway_id, "gateway", self.factories.gateway, spec, part.placement)

    def _front(
        self,
        name: str,
        role: Literal["router", "gateway"],
        factory: str,
        spec: RouterSpec | GatewaySpec,
        placement: Placement,
    ) -> Launch:
        return Launch(
            name=name, role=role, factory=factory, spec=spec, cpu_bind=None, core_index=0,
            num_cpus=ROUTER_CPUS, num_gpus=0, start_timeout_s=120.0,
            environment=dict(self.environment), placement=placement,
        )  # fmt: skip

    def _workers(
        self, role: Role, part: WorkerConfig, factory: str, first_core: int
    ) -> list[Launch]:
        mode = {DETERMINISTIC_VARIABLE: "1"} if self.config.deterministic else {}
        return [
            Launch(
                name=f"{role}-{index}",
                role=role,
                factory=factory,
                spec=self._worker_spec(role, part, index),
                cpu_bind=None if part.num_gpus else cores_or_auto(part.cpu_bind, index),
                core_index=first_core + index,
                num_cpus=part.num_cpus,
                num_gpus=part.num_gpus,
                start_timeout_s=part.start_timeout_s,
                environment={**self.environment, **part.env, **mode},
                placement=part.placement,
            )
            for index in range(part.replicas)
        ]

    def _worker_spec(self, role: Role, part: WorkerConfig, index: int) -> WorkerSpec:
        return WorkerSpec(
            worker_id=f"{role}-{index}",
            role=role,
            model_path=self._path_for_workers(),
            model=self.config.model,
            host=part.host,
            metrics_port=part.metrics_port + index if part.metrics_port else 0,
            engine_args=dict(part.engine),
            options=self.config.options_of(role),
            side_channel_port=0,  # the actor finds a free one on its node
            hung_after_s=part.hung_after_s,
            max_message_bytes=self.config.router.limits.max_message_bytes,
            security=self.config.security,
            observability=self.config.observability,
        )

    def _path_for_workers(self) -> str:
        """Empty where each node looks for the model: engines need paths that are the same."""
        is_joined = self.config.ray.address != "local"
        is_left_to_nodes = is_joined and has_name(self.config.model)
        return "" if is_left_to_nodes else str(self.model_path or "")


def cores_or_auto(cpu_bind: str, replica: int) -> str:
    """Leaves "auto" to the actor, which knows its node's cores."""
    return cpu_bind if cpu_bind == "auto" else cores_of(cpu_bind, replica, 0, ())
