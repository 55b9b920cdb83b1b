"""The environment in which vLLM's own traces join ours."""

from __future__ import annotations

from stream2llm.serving.observability.tracing import service_name
from stream2llm.serving.settings.worker_spec import Role


def tracing_environment(role: Role) -> dict[str, str]:
    """Variables that the SDK in the engine's processes reads; ours is configured otherwise."""
    return {
        # Requests without a context (the control channel, prefetches) begin no trace.
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_SERVICE_NAME": service_name(role),
        # As often as our own spans are sent.
        "OTEL_BSP_SCHEDULE_DELAY": "1000",
    }
