"""The configuration of a cluster: one frozen tree.

Unknown keys are refused by name. Sections that reach a router's or an engine's
inside are declared, with their defaults, beside their users' specs (`serving/settings/`).
Nothing below the composition roots reads the environment or a file; they get
a part of this tree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from stream2llm.api.handover import HandoverMode
from stream2llm.cluster.front_config import FrontConfig
from stream2llm.cluster.gateway_config import GatewayConfig
from stream2llm.cluster.worker_config import DecodeConfig, MixedConfig, PrefillConfig, WorkerConfig
from stream2llm.models.hub import hub_id
from stream2llm.serving.settings.frozen_model import FrozenModel
from stream2llm.serving.settings.observability_options import ObservabilityOptions
from stream2llm.serving.settings.placement import Placement
from stream2llm.serving.settings.router_spec import (
    DEFAULT_ADMISSION,
    DEFAULT_DRAIN_TIMEOUT_S,
    AdmissionMode,
    RecoveryOptions,
    RouterLimits,
)
from stream2llm.serving.settings.security_options import SecurityOptions
from stream2llm.serving.settings.tenant_options import Milliseconds, Quota
from stream2llm.serving.settings.worker_options import (
    HandoverOptions,
    StructuredOutputOptions,
    WorkerOptions,
)
from stream2llm.serving.settings.worker_spec import Role


class RayConfig(FrozenModel):
    """The Ray cluster that the actors run on."""

    address: str = "local"
    """Ray cluster to use. "local": start one and stop it with us. "auto" or host:port: join one
    that runs."""
    namespace: str = "stream2llm"
    """Ray namespace of the actors. Two clusters on one Ray need different ones."""
    auth_mode: Literal["disabled", "token"] = "token"
    """Authentication mode of a Ray of our own. A Ray that is joined has its own mode: the
    environment's (RAY_AUTH_MODE) wins, and this counts only if it is set in the file."""
    include_dashboard: bool = False
    """Whether a "local" Ray starts its web dashboard."""
    autoscales: bool = False
    """Whether an autoscaler adds nodes to the Ray that is joined. What no present node has room for
    is then waited for; otherwise it is refused at the start."""


class RouterConfig(FrontConfig):
    """The routers, which clients connect to."""

    replicas: int = Field(default=1, ge=1)
    """Number of routers."""
    host: str = "127.0.0.1"
    """Address that routers listen on. "auto": that of the node that Ray places the router on."""
    port: int = Field(default=50051, ge=0, le=65535)
    """gRPC port of the first router; the others take the following ports. 0: any free."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Prometheus port of the first router; the others take the following ports. 0: any free."""
    limits: RouterLimits = RouterLimits()
    """What a router admits."""
    ttft_slo_ms: Milliseconds | None = None
    """Deadline of the first token of every session of the model, in milliseconds from the seal; a
    tenant may have another one (`security.tenants`). A session may ask for a shorter one, never for
    a longer one. Unset: only sessions that ask for one, and those of such tenants."""
    admission: AdmissionMode = DEFAULT_ADMISSION
    """What happens to a session that opens with a deadline which, by the work that is queued, would
    not hold: it is admitted (`always`), admitted with a warning (`warn`), or refused with
    the time after which to try again (`refuse`; where no work is queued before it, it is
    admitted with a warning)."""
    recovery: RecoveryOptions = RecoveryOptions()
    """What happens to sessions that lose a worker."""
    drain_timeout_s: float = Field(default=DEFAULT_DRAIN_TIMEOUT_S, ge=0)
    """Seconds that a drain waits for open sessions to end."""


class ControllerConfig(FrozenModel):
    """The controller, which starts, watches and replaces routers and workers."""

    host: str = "127.0.0.1"
    """Address that the controller listens on. "auto": that of the node it runs on."""
    http_port: int = Field(default=0, ge=0, le=65535)
    """HTTP port: `/sd` for Prometheus, `/metrics`, `/status`, `/healthz`, `/policy`. 0: any free."""
    placement: Placement = Placement()
    """The nodes that Ray may place the controller on. Without any: the node that `up` runs on."""
    health_interval_s: float = Field(default=1.0, gt=0)
    """Seconds between two health checks of a worker."""
    unresponsive_after_s: float = Field(default=15.0, gt=0)
    """Seconds without an answer to health checks after which a router or worker is killed and
    replaced. Time in which the controller itself did not run does not count."""
    lease_s: float = Field(default=60.0, ge=1)
    """Seconds after which a cluster on a Ray that `up` has joined is drained and ends when `up` died
    without ending it. `up` renews that lease while it runs; with `--detach` there is none."""
    max_start_failures: int = Field(default=3, ge=1)
    """Failed starts in a row after which a worker is given up: it is tried again after 60 s, with
    pauses that grow to 15 min, or at once by `stream2llm workers retry`."""


class ClusterConfig(FrozenModel):
    """The whole cluster; the top level of the YAML file."""

    model: str = "smollm2-135m-instruct"
    """Model name that `stream2llm model fetch` knows, a directory, or an id of the Hugging Face hub,
    `org/name@revision`, that was fetched on every node. Without the revision: the branch main."""
    served_model_name: str | None = None
    """Name that clients use for the model. Unset: the model's own name, of an id what stands behind
    the slash."""
    deterministic: bool = False
    """Whether answers are independent of what runs beside them: vLLM's batch-invariant mode, on
    GPUs only (docs/operations.md says what holds without it)."""
    ray: RayConfig = RayConfig()
    """The Ray cluster that the actors run on."""
    controller: ControllerConfig = ControllerConfig()
    """The controller."""
    router: RouterConfig = RouterConfig()
    """The routers."""
    gateway: GatewayConfig | None = None
    """The gateways. Unset: none."""
    prefill: PrefillConfig = PrefillConfig()
    """The prefill workers. Absent, as `decode`, where there is only `mixed`."""
    decode: DecodeConfig = DecodeConfig()
    """The decode workers."""
    mixed: MixedConfig | None = None
    """Mixed workers: each prefills, and goes on with the answers itself. For machines with one GPU or
    two cores; alone, or beside prefill and decode workers. Unset: none."""
    handover: HandoverOptions = HandoverOptions()
    """How KV crosses from prefill to decode. A plain string sets `mode`."""
    structured_output: StructuredOutputOptions = StructuredOutputOptions()
    """How structured outputs are compiled."""
    security: SecurityOptions = SecurityOptions()
    """Who may listen in, and who may connect."""
    observability: ObservabilityOptions = ObservabilityOptions()
    """Traces of sessions, and the form of the logs."""

    @model_validator(mode="after")
    def _traced_engines_keep_their_times(self) -> ClusterConfig:
        """vLLM makes its span of a request of those times, and fails without them."""
        for role, part in self.worker_sections:
            if self.observability.tracing.is_on and part.engine.get("disable_log_stats"):
                raise ValueError(
                    f"observability.tracing needs the times of requests: remove"
                    f" {role}.engine.disable_log_stats"
                )
        return self

    @model_validator(mode="after")
    def _each_router_has_a_part_of_each_quota(self) -> ClusterConfig:
        tenants = self.security.tenants
        for name, tenant in (("default", tenants.default), *tenants.named.items()):
            for quota in Quota:
                limit = getattr(tenant, quota)
                if limit is not None and limit < self.router.replicas:
                    raise ValueError(
                        f"security.tenants: {quota} of {name} is {limit}, less than"
                        f" router.replicas ({self.router.replicas}): each router has a part of it"
                    )
        return self

    @model_validator(mode="after")
    def _routers_accept_their_gateways(self) -> ClusterConfig:
        tls = self.security.tls
        if self.gateway is None or tls is None or tls.client_ca is None:
            return self
        if self.gateway.client_certificate is None:
            raise ValueError(
                "routers accept only clients with a certificate (security.tls.client_ca): give"
                " gateway.client_certificate and gateway.client_key"
            )
        return self

    @model_validator(mode="after")
    def _prefill_and_decode_come_together(self) -> ClusterConfig:
        given = {"prefill", "decode"} & self.model_fields_set
        if self.mixed is not None and len(given) == 1:
            raise ValueError(
                f"there is a section {min(given)}, which needs the other one of prefill and decode;"
                " give both beside mixed, or neither"
            )
        return self

    @model_validator(mode="after")
    def _one_policy_for_all(self) -> ClusterConfig:
        if self.mixed is None or not self.has_pairs:
            return self
        for name in ("policy", "extra_policies"):
            if getattr(self.mixed, name) != getattr(self.prefill, name):
                raise ValueError(
                    f"mixed.{name} and prefill.{name} differ: a cluster has one choice"
                )
        return self

    @model_validator(mode="after")
    def _decode_caches_what_it_fetches(self) -> ClusterConfig:
        is_asked_for = "mode" in self.handover.model_fields_set
        if is_asked_for and self.handover.mode == "streamed" and not self._decode_has_cache:
            raise ValueError(
                "handover.mode streamed needs decode.engine.enable_prefix_caching: that cache"
                " holds what is prefetched"
            )
        return self

    @property
    def worker_sections(self) -> tuple[tuple[Role, WorkerConfig], ...]:
        """The sections of the workers, each with its role."""
        mixed: tuple[tuple[Role, WorkerConfig], ...]
        mixed = () if self.mixed is None else (("mixed", self.mixed),)
        if not self.has_pairs:
            return mixed
        return (("prefill", self.prefill), ("decode", self.decode), *mixed)

    @property
    def has_pairs(self) -> bool:
        """Whether there are prefill and decode workers: not where the file has only `mixed`."""
        return self.mixed is None or "prefill" in self.model_fields_set

    @property
    def prefilling(self) -> tuple[Role, PrefillConfig]:
        """The first section whose workers prefill, with its role."""
        if self.mixed is None or self.has_pairs:
            return ("prefill", self.prefill)
        return ("mixed", self.mixed)

    @property
    def _decode_has_cache(self) -> bool:
        return self.decode.engine.get("enable_prefix_caching") is not False

    @property
    def handover_mode(self) -> HandoverMode:
        """How sessions that ask for nothing hand over."""
        return self.handover.mode if self._decode_has_cache else "at_seal"

    @property
    def worker_options(self) -> WorkerOptions:
        """What schedulers of prefill and decode workers are set by."""
        return WorkerOptions(
            prefill=self.prefill.options,
            handover=self.handover,
            structured_output=self.structured_output,
            logs=self.observability.logs,
        )

    def options_of(self, role: Role) -> WorkerOptions:
        """What schedulers of that role are set by."""
        if role != "mixed" or self.mixed is None:
            return self.worker_options
        change = {
            "prefill": self.mixed.options,
            "inter_token_target_ms": self.mixed.inter_token_target_ms,
        }
        return self.worker_options.model_copy(update=change)

    @property
    def model_name(self) -> str:
        """The name clients use for the model."""
        of_hub = hub_id(self.model)
        named = self.model if of_hub is None else of_hub.repository
        return self.served_model_name or Path(named).name


def on_free_ports(config: ClusterConfig) -> ClusterConfig:
    """The same cluster, beside one that may already run on the usual ports."""
    router = config.router.model_copy(update={"port": 0})
    controller = config.controller.model_copy(update={"http_port": 0})
    gateway = config.gateway and config.gateway.model_copy(update={"port": 0})
    return config.model_copy(
        update={"router": router, "controller": controller, "gateway": gateway}
    )
