"""What tenants may use, and how they rank among each other: `security.tenants`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from stream2llm.api.options import MAX_TTFT_SLO_MS
from stream2llm.api.tenant import (
    MAX_PRIORITY,
    MAX_WEIGHT,
    MIN_PRIORITY,
    MIN_WEIGHT,
    TenantShare,
)
from stream2llm.security.principal import TENANT_FORM, is_tenant
from stream2llm.serving.settings.frozen_model import FrozenModel

# In metrics and status: all tenants that the configuration does not name.
OTHERS = "(others)"
MAX_NAMED = 1000
Milliseconds = Annotated[int, Field(ge=1, le=MAX_TTFT_SLO_MS)]


class Quota(StrEnum):
    """The settings of a tenant that are quotas."""

    OPEN_SESSIONS = "max_open_sessions"
    HELD_TOKENS = "max_held_tokens"
    TOKENS_PER_MINUTE = "max_tokens_per_minute"


def require_tenant(name: str) -> str:
    """The name; raises ValueError for one that no tenant may have."""
    if not is_tenant(name):
        raise ValueError(f"{name!r} is no name of a tenant: {TENANT_FORM}")
    return name


TenantName = Annotated[str, AfterValidator(require_tenant)]


class TenantOptions(FrozenModel):
    """One tenant: its rank among others, and its quotas in the whole cluster."""

    weight: float = Field(default=1.0, ge=MIN_WEIGHT, le=MAX_WEIGHT)
    """Share of prefill's work, of KV memory and of decode's queue, in proportion to the weights of
    other tenants of the same priority."""
    priority: int = Field(default=0, ge=MIN_PRIORITY, le=MAX_PRIORITY)
    """Tenants of a higher priority are served before those of a lower one."""
    max_open_sessions: int | None = Field(default=None, ge=1)
    """Maximum sessions open at the same time, at all routers together
    (`QUOTA_OPEN_SESSIONS`). Unset: no quota."""
    max_held_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens of context that its open sessions have, at all routers together
    (`QUOTA_HELD_TOKENS`). Unset: no quota."""
    max_tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens a minute that its sessions may send, replaced documents included, at all routers
    together (`QUOTA_TOKENS_PER_MINUTE`). Unset: no quota."""
    ttft_slo_ms: Milliseconds | None = None
    """Deadline of the first token, in milliseconds from the seal, longer or shorter than the model's.
    A session may ask for a shorter one, never for a longer one. Unset: the model's
    (`router.ttft_slo_ms`)."""


class TenantsOptions(FrozenModel):
    """Weights, priorities and quotas of tenants. Credentials (`auth`) say whose a call is."""

    default: TenantOptions = TenantOptions()
    """Each tenant that `named` does not have; quotas are for each of them."""
    named: dict[TenantName, TenantOptions] = Field(default_factory=dict, max_length=MAX_NAMED)
    """Tenants by name. Metrics and status show these by name, all others together."""

    def of(self, name: str) -> TenantOptions:
        """The settings of a tenant."""
        return self.named.get(name, self.default)

    def share(self, name: str) -> TenantShare:
        """The tenant as workers know it."""
        options = self.of(name)
        return TenantShare(name, options.weight, options.priority)

    def label(self, name: str) -> str:
        """The tenant in metrics and status: a bounded set."""
        return name if name in self.named else OTHERS

    @property
    def labels(self) -> tuple[str, ...]:
        """All values of `label`."""
        return (*self.named, OTHERS)


# Equal weights, no quotas, no names.
ALL_ALIKE = TenantsOptions()
