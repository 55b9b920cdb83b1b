"""Metrics of a router by tenant: those of the configuration, and all others together. Pure."""

from __future__ import annotations

from stream2llm.serving.observability.metric_maker import ByLabel, MetricMaker
from stream2llm.serving.settings.tenant_options import TenantsOptions

# vLLM's buckets, so that one panel can show both.
TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)


class TenantMetrics:
    """Sessions, tokens and refusals of each tenant."""

    def __init__(self, make: MetricMaker, model: str, tenants: TenantsOptions) -> None:
        self._tenants = tenants
        self._model = model
        self._open = ByLabel(
            make.gauge(
                "tenant_sessions_active",
                "Sessions open now, by tenant: those of the configuration, and all others together.",
                "tenant",
            ),
            model,
        )
        self._tokens = ByLabel(
            make.counter(
                "tenant_input_tokens",
                "Tokens received, by tenant: those of the configuration, and all others together.",
                "tenant",
            ),
            model,
        )
        self._computed = ByLabel(
            make.counter(
                "tenant_prefilled_tokens",
                "Tokens that prefill computed, invalidated ones included, by tenant.",
                "tenant",
            ),
            model,
        )
        self._refused = make.counter(
            "tenant_quota_refusals",
            "Sessions and events that a quota refused, by tenant and quota.",
            *("tenant", "quota"),
        )
        self._ttft = ByLabel(
            make.histogram(
                "tenant_ttft_seconds",
                "Seconds from seal to first token, by tenant: those of the configuration, and all others"
                " together.",
                TTFT_S,
                "tenant",
            ),
            model,
        )
        for metric in (self._ttft, self._open, self._tokens, self._computed):
            metric.show(*tenants.labels)

    def changed(self, tenant: str, change: int) -> None:
        """A session of the tenant has begun or ended."""
        self._open[self._tenants.label(tenant)].inc(change)

    def received(self, tenant: str, num_tokens: int) -> None:
        """A session of the tenant has sent tokens."""
        self._tokens[self._tenants.label(tenant)].inc(num_tokens)

    def computed(self, tenant: str, num_tokens: int) -> None:
        """Prefill has computed tokens for a session of the tenant."""
        self._computed[self._tenants.label(tenant)].inc(num_tokens)

    def first_token(self, tenant: str, from_seal_s: float) -> None:
        """Prefill sampled the first token for a session of the tenant."""
        self._ttft[self._tenants.label(tenant)].observe(from_seal_s)

    def quota_refused(self, tenant: str, quota: str) -> None:
        """A quota of the tenant, by the name of its setting, was used up."""
        label = self._tenants.label(tenant)
        self._refused.labels(self._model, label, quota).inc()
