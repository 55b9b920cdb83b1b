"""What the control plane gives a worker to start with, and what it gets back. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from stream2llm.serving.router_spec import RouterLimits
from stream2llm.serving.worker_options import WorkerOptions

Role = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything a worker needs to start."""

    # Unique in the cluster, for instance "prefill-0".
    worker_id: str
    role: Role
    # A directory with the model.
    model_path: str
    # Where the worker listens, and the address others reach it at.
    host: str
    # 0: any free port.
    metrics_port: int
    # vLLM engine arguments; vLLM checks them.
    engine_args: dict[str, Any] = field(default_factory=dict)
    # What its scheduler is set by.
    options: WorkerOptions = field(default_factory=WorkerOptions)
    # NIXL's handshake port; one for each engine on a node.
    side_channel_port: int = 0
    # Of one gRPC message, as the routers' limits have it.
    max_message_bytes: int = RouterLimits().max_message_bytes


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


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Load and memory of a worker."""

    num_sessions: int
    num_kv_blocks: int
    num_kv_blocks_held: int
    block_size: int
    pids: tuple[int, ...]
    # The scheduling policy in force; prefill workers only.
    policy: str = ""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The workers a router may use; the higher version is the newer one."""

    version: int
    workers: tuple[WorkerAddress, ...]
    # host:port of the controller's HTTP.
    controller_address: str = ""
