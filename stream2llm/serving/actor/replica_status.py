"""What a router, a gateway or a worker answers to a health check. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.api.events import TenantInfo
from stream2llm.serving.settings.worker_spec import WorkerStatus


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """Load of a router."""

    router_id: str
    # Open sessions; phases without any are left out.
    sessions_by_phase: dict[str, int]
    # What tenants use.
    tenants: tuple[TenantInfo, ...] = ()
    # Whether it refuses new sessions: by request, or because its node or pod is about to end.
    is_draining: bool = False


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """Load of a gateway."""

    # Under way.
    num_requests: int
    # Whether it refuses new requests.
    is_draining: bool = False


ReplicaStatus = WorkerStatus | RouterStatus | GatewayStatus
