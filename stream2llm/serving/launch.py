"""What the controller hands to an actor, and what the actor answers. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stream2llm.serving.router_spec import RouterSpec
from stream2llm.serving.worker_spec import WorkerAddress, WorkerSpec

ReplicaRole = Literal["router", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Launch:
    """One replica: what its actor needs, and how Ray places it."""

    name: str
    role: ReplicaRole
    factory: str
    spec: WorkerSpec | RouterSpec
    # VLLM_CPU_OMP_THREADS_BIND; "auto" is resolved on the actor's node, None on GPUs.
    cpu_bind: str | None
    # Counts the workers of the cluster; "auto" gives each the next core.
    core_index: int
    num_cpus: float
    num_gpus: float
    start_timeout_s: float
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class RouterStarted:
    """What the controller keeps of a router."""

    worker_id: str
    role: str
    grpc_address: str
    metrics_address: str
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StartOutcome:
    """How a start ended. A value, because engine exceptions do not always pickle."""

    address: WorkerAddress | RouterStarted | None
    error: str = ""
    permanent: bool = False


def cores_of(cpu_bind: str, replica: int, core_index: int, cores: tuple[int, ...]) -> str:
    """The binding of one replica: its part of "a;b;c", or its core in turn."""
    if cpu_bind == "auto":
        return str(cores[core_index % len(cores)])
    parts = cpu_bind.split(";")
    return parts[replica % len(parts)].strip()
