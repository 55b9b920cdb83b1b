"""What the control plane gives a worker to start with, and what it gets back. Plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from stream2llm.serving.settings.observability_options import ObservabilityOptions
from stream2llm.serving.settings.router_spec import RouterLimits
from stream2llm.serving.settings.security_options import SecurityOptions
from stream2llm.serving.settings.worker_options import WorkerOptions

# Mixed workers prefill as prefill workers do, and go on with the answers themselves.
Role = Literal["prefill", "decode", "mixed"]
# Roles of workers that sessions begin at.
PREFILLING: frozenset[Role] = frozenset({"prefill", "mixed"})


def can_answer(roles: Iterable[Role]) -> bool:
    """Whether workers of these roles together answer a session, from its context to its end."""
    return "mixed" in (present := set(roles)) or present >= {"prefill", "decode"}


DEFAULT_HUNG_AFTER_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything a worker needs to start."""

    # Unique in the cluster, for instance "prefill-0".
    worker_id: str
    role: Role
    # A directory with the model; empty: `model` is looked up on the node.
    model_path: str
    # Where the worker listens, and the address others reach it at.
    host: str
    # 0: any free port.
    metrics_port: int
    # The configuration's name, directory or id of the model.
    model: str = ""
    # vLLM engine arguments; vLLM checks them.
    engine_args: dict[str, Any] = field(default_factory=dict)
    # Settings of its scheduler.
    options: WorkerOptions = field(default_factory=WorkerOptions)
    # NIXL's handshake port; one for each engine on a node.
    side_channel_port: int = 0
    # Maximum size of one gRPC message, from the routers' limits.
    max_message_bytes: int = RouterLimits().max_message_bytes
    # Seconds without a sign of life after which its engine counts as hung, at the least.
    hung_after_s: float = DEFAULT_HUNG_AFTER_S
    # Who may listen in, and who may connect.
    security: SecurityOptions = field(default_factory=SecurityOptions)
    # Its traces and the form of its logs.
    observability: ObservabilityOptions = field(default_factory=ObservabilityOptions)
    # What the cluster's own parts send with every RPC to a worker; others are refused. Never
    # logged. Empty: every RPC is served.
    cluster_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """A worker that has started."""

    worker_id: str
    role: Role
    # host:port
    grpc_address: str
    metrics_address: str
    # The actor's process, then its children: EngineCore, Worker.
    pids: tuple[int, ...]
    max_model_len: int
    num_kv_blocks: int
    block_size: int

    @property
    def num_kv_tokens(self) -> int:
        """How many tokens the whole KV memory holds."""
        return self.num_kv_blocks * self.block_size


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """Load and memory of a worker."""

    num_sessions: int
    num_kv_blocks: int
    num_kv_blocks_held: int
    block_size: int
    pids: tuple[int, ...]
    # The scheduling policy in force, and why it is not the chosen one; not of decode workers.
    policy: str = ""
    policy_failure: str = ""
    # Whether it refuses new sessions: by request, or because its node or pod is about to end.
    is_draining: bool = False
    # Seconds for which its engine has given no sign of life, and may give none.
    silent_s: float = 0.0
    silence_limit_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DrainingWorker:
    """A worker that gets no new sessions, and ends before long."""

    worker_id: str
    # Seconds that its open sessions have, when the view is sent.
    left_s: float


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The workers a router may use, and the routers; the higher version is the newer one."""

    version: int
    workers: tuple[WorkerAddress, ...]
    # host:port of the controller's HTTP.
    controller_address: str = ""
    # Those that still have sessions, but may get no more.
    draining: tuple[DrainingWorker, ...] = ()
    # host:port of the gRPC of each router that can be used; only in clusters with a gateway.
    routers: tuple[str, ...] = ()
