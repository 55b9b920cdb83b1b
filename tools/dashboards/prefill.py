"""Prefill's scheduler and KV memory."""

from __future__ import annotations

from tools.dashboards.model import (
    Dashboard,
    Query,
    held,
    panel,
    percentiles,
    rate,
    rates,
    row,
    total,
    totals,
)

_WORK = row(
    "Work",
    panel(
        "Prompt tokens",
        "Tokens a second by kind: computed, recomputed after a preemption, reused, restored.",
        "cps",
        rates("stream2llm_prefill_tokens_total", "kind"),
    ),
    panel(
        "Sessions",
        "Sessions with work, idle ones that wait for context, and those short of blocks.",
        "none",
        totals("stream2llm_prefill_sessions", "state"),
    ),
    panel(
        "Time to plan a step",
        "Seconds that the scheduler takes for one engine step.",
        "s",
        *percentiles("stream2llm_scheduler_decision_seconds"),
    ),
    panel(
        "Policy in force",
        "Workers that follow each scheduling policy.",
        "none",
        Query(total("stream2llm_scheduler_policy_info", "policy") + " > 0", "{{policy}}"),
    ),
)
_MEMORY = row(
    "Memory",
    panel(
        "KV blocks held",
        "Share of each prefill or mixed worker's KV blocks that sessions or leases hold.",
        "percentunit",
        Query(held("instance", 'role=~"prefill|mixed"'), "{{instance}}"),
    ),
    panel(
        "CPU KV offload pool",
        "KV blocks in host memory, used and free.",
        "none",
        totals("stream2llm_offload_pool_blocks", "state"),
    ),
    panel(
        "Preemptions",
        "Sessions a second whose KV was evicted, by what brings it back.",
        "cps",
        rates("stream2llm_preemptions_total", "action"),
    ),
    panel(
        "Why swap or recompute",
        "Preemptions a second by the reason of the choice.",
        "cps",
        Query(
            rate("stream2llm_preemption_decisions_total", "action, reason"),
            "{{action}}: {{reason}}",
        ),
    ),
    panel(
        "Swapped bytes",
        "Bytes of KV a second copied to the host (out) and back (in).",
        "Bps",
        rates("stream2llm_swapped_bytes_total", "direction"),
    ),
    panel(
        "Correction of the cost profile",
        "Actual seconds for each predicted one; 1 is a profile that is right.",
        "short",
        Query("avg by (curve) (stream2llm_cost_factor)", "{{curve}}"),
    ),
)
PREFILL = Dashboard(
    "stream2llm-prefill",
    "Stream2LLM / Prefill scheduler and memory",
    "What prefill computes, for whom KV memory is short, and what preemption costs.",
    (_WORK, _MEMORY),
)
