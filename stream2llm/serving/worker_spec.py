"""What the control plane tells a worker, and what it hears back. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.handover import MAX_FETCH_SHARE

Role = Literal["prefill", "decode"]

# How a prefill worker ranks its sessions; `prefill_worker/policy.py` says what each means.
PolicyName = Literal["default", "fcfs", "lcas", "mcps", "srpf"]
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)
# The one that nobody has to ask for (docs/benchmark-results.md has the contest).
DEFAULT_POLICY: PolicyName = "srpf"
# Of a step for open sessions alone, unless configured. Over 8,192, simulated sessions of a
# vector search have a fifth less TTFT at P50 on the paper's H200; shorter steps cost P95
# of a crawler (docs/benchmark-results.md).
OPEN_STEP_TOKENS = 2048


def require_policy(name: str) -> PolicyName:
    """The name, if a policy has it; raises InvalidRequestError that lists them otherwise."""
    for known in POLICY_NAMES:
        if name == known:
            return known
    raise InvalidRequestError(
        f"no scheduling policy is called {name!r}; there are {', '.join(POLICY_NAMES)}",
        reason="UNKNOWN_POLICY",
        field="policy",
    )


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
    # How long blocks wait for a decode worker that shows no sign of life.
    lease_s: int = 10
    # NIXL's handshake port; one for each engine on a node.
    side_channel_port: int = 0
    # All that follow but the last are for prefill workers.
    progress_interval_tokens: int = 256
    policy: PolicyName = DEFAULT_POLICY
    starvation_guard_steps: int = 1000
    # Most tokens of a step for open sessions alone; the policy decides whether it holds.
    open_token_budget: int = OPEN_STEP_TOKENS
    # What becomes of evicted KV: "recompute", "swap" or "cost".
    preemption: str = "cost"
    # Host memory that KV is swapped to, of all GPUs of the worker together; 0: no swapping.
    offload_pool_bytes: int = 0
    # File with measured costs; "": the one for this machine, if there is one.
    cost_profile: str = ""
    max_message_bytes: int = 16 * 1024 * 1024
    # Prefill: what one hand-over ahead of the seal brings at least, in tokens.
    min_offer_tokens: int = 256
    # Decode: how much of answers' time KV prefetch may cost.
    max_fetch_share: float = MAX_FETCH_SHARE


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
