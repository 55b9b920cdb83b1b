"""Who is served: tenants and quotas; deadlines kept, and how fast their budget is used up."""

from __future__ import annotations

from tools.dashboards.model import (
    MODEL,
    Dashboard,
    Query,
    panel,
    percentiles,
    rate,
    rates,
    row,
    share,
    totals,
)

_DEADLINES = "stream2llm_ttft_deadlines_total"
_MISSED = f'{MODEL}, result="missed"'
# The share of answers that may miss their deadline, as in deploy/prometheus/alerts.yaml.
_BUDGET = 0.01


def _burn_rate(window: str) -> str:
    missed = f"sum(rate({_DEADLINES}{{{_MISSED}}}[{window}]))"
    return f"{share(missed, f'sum(rate({_DEADLINES}{{{MODEL}}}[{window}]))')} / {_BUDGET}"


_TENANTS = row(
    "Tenants",
    panel(
        "Open sessions by tenant",
        "Tenants of the configuration; all others together are (others).",
        "none",
        totals("stream2llm_tenant_sessions_active", "tenant", MODEL),
    ),
    panel(
        "Prefilled tokens by tenant",
        "Tokens a second that prefill computed, invalidated ones included.",
        "cps",
        rates("stream2llm_tenant_prefilled_tokens_total", "tenant", MODEL),
    ),
    panel(
        "Received tokens by tenant",
        "Tokens a second that clients sent.",
        "cps",
        rates("stream2llm_tenant_input_tokens_total", "tenant", MODEL),
    ),
    panel(
        "TTFT by tenant",
        "Seconds from seal to first token.",
        "s",
        *percentiles("stream2llm_tenant_ttft_seconds", "tenant", MODEL),
    ),
    panel(
        "Decoded tokens by tenant",
        "Tokens a second of answers, behind the first ones, that decode or mixed workers computed.",
        "cps",
        rates("stream2llm_tenant_decoded_tokens_total", "tenant"),
    ),
    panel(
        "Refused by quota",
        "Sessions and events a second beyond a quota of their tenant.",
        "cps",
        rates("stream2llm_tenant_quota_refusals_total", "tenant, quota", MODEL, or_zero=True),
    ),
)
_IN_TIME = row(
    "Deadlines",
    panel(
        "Answers in time",
        "Share of sealed sessions with a deadline whose first token came before it.",
        "percentunit",
        Query(
            "1 - " + share(rate(_DEADLINES, where=_MISSED), rate(_DEADLINES, where=MODEL)),
            "in time",
        ),
    ),
    panel(
        "Burn rate",
        "Missed deadlines, in times of the one in a hundred that may be missed.",
        "none",
        *(Query(_burn_rate(window), window) for window in ("5m", "1h")),
    ),
    panel(
        "Sessions with a deadline",
        "Sessions a second, by whether their first token came in time.",
        "cps",
        rates(_DEADLINES, "result", MODEL),
    ),
    panel(
        "Forecasts at the opening",
        "Sessions a second with a deadline, by the forecast (router.admission).",
        "cps",
        rates("stream2llm_admission_forecasts_total", "verdict", MODEL),
    ),
)
TENANTS = Dashboard(
    "stream2llm-tenants",
    "Stream2LLM / Tenants and deadlines",
    "Who is served, what quotas refuse, and which answers are in time.",
    (_TENANTS, _IN_TIME),
)
