"""Which deadline the first token of a session has. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.ttft_slo import BAD_TTFT_SLO, AskedSlo
from stream2llm.serving.settings.tenant_options import TenantsOptions


def chosen_slo_ms(
    asked: Iterable[AskedSlo], model_ms: int | None, tenants: TenantsOptions, tenant: str
) -> int:
    """Milliseconds from the seal; 0: no deadline.

    The shortest of those asked for, else what the tenant has, else what the model has. Raises
    InvalidRequestError for one that is longer than the tenant's or the model's.
    """
    tenants_ms = tenants.of(tenant).ttft_slo_ms
    limit_ms = tenants_ms or model_ms
    shortest_ms = limit_ms or 0
    for field, slo_ms in asked:
        if limit_ms is not None and slo_ms > limit_ms:
            whose = f"the tenant {tenant!r}" if tenants_ms else "the model"
            raise InvalidRequestError(
                f"{field} is {slo_ms}; it must be at most {limit_ms}, which {whose} has",
                reason=BAD_TTFT_SLO,
                field=field,
            )
        shortest_ms = min(shortest_ms or slo_ms, slo_ms)
    return shortest_ms
