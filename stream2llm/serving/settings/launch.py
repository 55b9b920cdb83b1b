"""Messages between the controller and an actor at its start. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stream2llm.serving.settings.gateway_spec import GatewaySpec
from stream2llm.serving.settings.placement import Placement
from stream2llm.serving.settings.router_spec import DEFAULT_DRAIN_TIMEOUT_S, RouterSpec
from stream2llm.serving.settings.worker_spec import WorkerAddress, WorkerSpec

ReplicaRole = Literal["router", "gateway", "prefill", "decode", "mixed"]


@dataclass(frozen=True, slots=True)
class Launch:
    """One replica: the input of its actor, and its placement by Ray."""

    name: str
    role: ReplicaRole
    factory: str
    spec: WorkerSpec | RouterSpec | GatewaySpec
    # VLLM_CPU_OMP_THREADS_BIND; "auto" is resolved on the actor's node, None on GPUs.
    cpu_bind: str | None
    # Index among the workers of the cluster; "auto" gives each the next core.
    core_index: int
    num_cpus: float
    num_gpus: float
    start_timeout_s: float
    environment: dict[str, str]
    placement: Placement = field(default_factory=Placement)
    # What open sessions have when the process gets SIGTERM.
    drain_timeout_s: float = DEFAULT_DRAIN_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class RouterStarted:
    """The data of a started router that the controller keeps."""

    worker_id: str
    role: str
    grpc_address: str
    metrics_address: str
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GatewayStarted:
    """The data of a started gateway that the controller keeps."""

    worker_id: str
    role: str
    # host:port of everything that it serves over HTTP, metrics too.
    http_address: str
    metrics_address: str
    pids: tuple[int, ...]


Started = WorkerAddress | RouterStarted | GatewayStarted


@dataclass(frozen=True, slots=True)
class StartOutcome:
    """The outcome of a start. A value, because engine exceptions do not always pickle."""

    address: Started | None
    error: str = ""
    permanent: bool = False


def cores_of(cpu_bind: str, replica: int, core_index: int, cores: tuple[int, ...]) -> str:
    """Returns one replica's binding: its part of "a;b;c", or its core in turn."""
    if cpu_bind == "auto":
        return str(cores[core_index % len(cores)])
    parts = cpu_bind.split(";")
    return parts[replica % len(parts)].strip()
