"""Who is served: tenants and quotas; deadlines kept, and how fast their budget is used up."""

from __future__ import annotations

from tools.dashboards.model import (
    MODEL,
    Dashboard,
    Panel,
    Query,
    Row,
    percentiles,
    rate,
    rates,
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


_TENANTS = Row(
    "Tenants",
    (
        Panel(
            "Open sessions by tenant",
            "Tenants of the configuration; all others together are (others).",
            "none",
            totals("stream2llm_tenant_sessions_active", "tenant", MODEL),
        ),
        Panel(
            "Prefilled tokens by tenant",
            "Tokens a second that prefill computed, invalidated ones included.",
            "cps",
            rates("stream2llm_tenant_prefilled_tokens_total", "tenant", MODEL),
        ),
        Panel(
            "Received tokens by tenant",
            "Tokens a second that clients sent.",
            "cps",
            rates("stream2llm_tenant_input_tokens_total", "tenant", MODEL),
        ),
        Panel(
            "TTFT by tenant",
            "Seconds from seal to first token.",
            "s",
            percentiles("stream2llm_tenant_ttft_seconds", "tenant", MODEL),
        ),
        Panel(
            "Decoded tokens by tenant",
            "Tokens a second that decode computed.",
            "cps",
            rates("stream2llm_tenant_decoded_tokens_total", "tenant"),
        ),
        Panel(
            "Refused by quota",
            "Sessions and events a second beyond a quota of their tenant.",
            "cps",
            (
                Query(
                    rate("stream2llm_tenant_quota_refusals_total", "tenant, quota", MODEL)
                    + " or vector(0)",
                    "{{tenant}} {{quota}}",
                ),
            ),
        ),
    ),
)
_IN_TIME = Row(
    "Deadlines",
    (
        Panel(
            "Answers in time",
            "Share of sealed sessions with a deadline whose first token came before it.",
            "percentunit",
            (
                Query(
                    "1 - " + share(rate(_DEADLINES, where=_MISSED), rate(_DEADLINES, where=MODEL)),
                    "in time",
                ),
            ),
        ),
        Panel(
            "Burn rate",
            "Missed deadlines, in times of the one in a hundred that may be missed.",
            "none",
            tuple(Query(_burn_rate(window), window) for window in ("5m", "1h")),
        ),
        Panel(
            "Sessions with a deadline",
            "Sessions a second, by whether their first token came in time.",
            "cps",
            rates(_DEADLINES, "result", MODEL),
        ),
        Panel(
            "Forecasts at the opening",
            "Sessions a second with a deadline, by the forecast (router.admission).",
            "cps",
            rates("stream2llm_admission_forecasts_total", "verdict", MODEL),
        ),
    ),
)
TENANTS = Dashboard(
    "stream2llm-tenants",
    "Stream2LLM / Tenants and deadlines",
    "Who is served, what quotas refuse, and which answers are in time.",
    (_TENANTS, _IN_TIME),
)
