"""Workers: by name, by node, and by cost profile."""

from __future__ import annotations

from tools.dashboards.model import (
    WINDOW,
    Dashboard,
    Query,
    held,
    panel,
    percentiles,
    rate,
    row,
    total,
)

_WORKER = "worker, instance"
_PROFILE = "stream2llm_cost_profile_info"
# PromQL: labels a worker's figures with its profile.
_WITH_PROFILE = f"* on ({_WORKER}) group_left (profile, source) {_PROFILE}"


def _vllm(name: str) -> str:
    """Matches a metric of vLLM: its colon arrives as an underscore where Prometheus 2 asks for it."""
    return f'__name__=~"vllm[:_]{name}"'


_REPLICAS = row(
    "Replicas",
    panel(
        "Serving",
        "1 while routers use the replica, else 0.",
        "none",
        Query("stream2llm_worker_up", "{{worker}}"),
    ),
    panel(
        "Replaced",
        "How often a replica was created again, or the controller started again.",
        "none",
        Query("stream2llm_worker_restarts_total", "{{worker}}"),
        Query("stream2llm_controller_restarts_total", "controller"),
    ),
    panel(
        "Lost",
        "Workers and routers that were lost within the hour, by cause; drained ones do not count.",
        "none",
        Query("sum by (cause) (increase(stream2llm_worker_losses_total[1h]))", "{{cause}}"),
    ),
    panel(
        "Sessions",
        "Sessions that each worker holds.",
        "none",
        Query(total("stream2llm_worker_sessions", _WORKER), "{{worker}}"),
    ),
    panel(
        "KV blocks held",
        "Share of each worker's KV blocks that a session or a lease holds.",
        "percentunit",
        Query(held(_WORKER), "{{worker}}"),
    ),
)
_ENGINES = row(
    "Engines",
    panel(
        "Answer tokens",
        "Tokens a second that each engine has generated, as vLLM counts them.",
        "cps",
        Query(rate("", _WORKER, _vllm("generation_tokens_total")), "{{worker}}"),
    ),
    panel(
        "KV cache usage",
        "Share of each engine's KV cache in use, as vLLM counts it.",
        "percentunit",
        Query(f"{{{_vllm('kv_cache_usage_perc')}}}", "{{worker}}"),
    ),
    panel(
        "Compiling structured outputs",
        "P50, P95 and P99 of seconds to compile one when its session opens, by role and backend.",
        "s",
        *percentiles("stream2llm_grammar_compile_seconds", "role, backend", or_zero=True),
    ),
)
_NODES = row(
    "Nodes",
    panel(
        "Processes by node",
        "Routers, workers and the controller that answer scrapes, by node and role.",
        "none",
        Query('sum by (node, role) (up{role!=""})', "{{node}} {{role}}"),
    ),
    panel(
        "Sessions by node",
        "Sessions that the workers of each node hold, by role.",
        "none",
        Query(total("stream2llm_worker_sessions", "node, role"), "{{node}} {{role}}"),
    ),
    panel(
        "KV blocks held by node",
        "Share of the KV blocks of each node's workers that a session or a lease holds.",
        "percentunit",
        Query(held("node, role"), "{{node}} {{role}}"),
    ),
)
_PROFILES = row(
    "Cost profiles",
    panel(
        "Cost profile of each prefill or mixed worker",
        "What preemption decides by: a profile that was measured, or modelled from figures.",
        "none",
        Query(_PROFILE, "{{worker}}: {{profile}} ({{source}})"),
    ),
    panel(
        "Prefilled tokens by cost profile",
        "Prompt tokens a second that workers with the same profile have computed.",
        "cps",
        Query(
            f"sum by (profile) (rate(stream2llm_prefill_tokens_total"
            f'{{kind="computed"}}[{WINDOW}]) {_WITH_PROFILE})',
            "{{profile}}",
        ),
    ),
    panel(
        "Correction of each cost profile",
        "Actual seconds of prefill for each one predicted, at the worker that is farthest above; far"
        " from 1 the profile is another machine's.",
        "none",
        Query(
            f"max by (profile, source)"
            f' (stream2llm_cost_factor{{curve="recompute"}} {_WITH_PROFILE})',
            "{{profile}} ({{source}})",
        ),
    ),
)
WORKERS = Dashboard(
    "stream2llm-workers",
    "Stream2LLM / Workers",
    "Replicas: whether they serve, how often they were lost, what each one holds; nodes and profiles.",
    (_REPLICAS, _ENGINES, _NODES, _PROFILES),
)
