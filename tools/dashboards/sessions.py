"""Sessions as a router sees them: phases, latencies, overlap with retrieval, and recovery."""

from __future__ import annotations

from tools.dashboards.model import (
    MODEL,
    Dashboard,
    Query,
    else_zero,
    mean,
    panel,
    percentiles,
    rate,
    rates,
    row,
    totals,
)

_PHASES = row(
    "Phases",
    panel(
        "Open sessions by phase",
        "What sessions wait for: a place, context, prefill, the KV transfer, decode.",
        "none",
        totals("stream2llm_sessions_active", "phase", MODEL),
    ),
    panel(
        "Context events",
        "Events a second: open, append, update, seal.",
        "cps",
        rates("stream2llm_input_chunks_total", "op", MODEL),
    ),
    panel(
        "Wait of events",
        "Seconds from the arrival of a client's event until its router handles it.",
        "s",
        *percentiles("stream2llm_event_wait_seconds", where=MODEL),
    ),
    panel(
        "Lag of the event loop",
        "Seconds by which a router's event loop wakes up late; all its sessions feel it.",
        "s",
        *percentiles("stream2llm_event_loop_lag_seconds", "worker"),
    ),
)
_LATENCY = row(
    "Latency",
    panel(
        "TTFT from the seal by input mode",
        "P50, P95 and P99 of seconds from the seal to the first token.",
        "s",
        *percentiles("stream2llm_time_to_first_token_seconds", "input_mode", MODEL),
    ),
    panel(
        "TTFT from the open by input mode",
        "P50, P95 and P99 of seconds from the open, retrieval included.",
        "s",
        *percentiles("stream2llm_session_ttft_seconds", "input_mode", MODEL),
    ),
    panel(
        "Inter-token latency",
        "Seconds between two outputs of one session.",
        "s",
        *percentiles("stream2llm_inter_token_latency_seconds", where=MODEL),
    ),
    panel(
        "Whole session",
        "Seconds from open to end of sessions that succeeded.",
        "s",
        *percentiles("stream2llm_e2e_latency_seconds", where=MODEL),
    ),
)
_OVERLAP = row(
    "Overlap",
    panel(
        "Prefilled when the seal came",
        "Mean share of a prompt's tokens that had been prefilled at the seal.",
        "percentunit",
        Query(mean("stream2llm_input_overlap_ratio", where=MODEL), "mean"),
    ),
    panel(
        "Invalidated tokens",
        "Prefilled tokens a second that updates invalidated, by document ordering.",
        "cps",
        rates("stream2llm_input_tokens_invalidated_total", "ordering", MODEL, or_zero=True),
    ),
)
_RECOVERY = row(
    "Recovery",
    panel(
        "Restarts",
        "Sessions a second that were placed at another worker, by what they had lost.",
        "cps",
        rates("stream2llm_session_restarts_total", "cause", MODEL),
    ),
    panel(
        "Time to recover",
        "P50, P95 and P99 of seconds from the loss of a worker to the next token.",
        "s",
        *percentiles("stream2llm_recovery_seconds", where=MODEL, or_zero=True),
    ),
    panel(
        "Tokens computed again",
        "Tokens a second that prefill computed again because the worker that had them was lost.",
        "cps",
        Query(
            else_zero(rate("stream2llm_recovery_recomputed_tokens_total", where=MODEL)),
            "recomputed",
        ),
    ),
    panel(
        "Sessions that were not recovered",
        "Sessions a second that failed for a lost worker or lost KV, by reason.",
        "cps",
        rates("stream2llm_errors_total", "reason", f'{MODEL}, reason=~"WORKER_LOST|KV_LOST"'),
    ),
)
SESSIONS = Dashboard(
    "stream2llm-sessions",
    "Stream2LLM / Sessions and TTFT",
    "What sessions wait for, how long, what streaming their context in saves, and what losses cost.",
    (_PHASES, _LATENCY, _OVERLAP, _RECOVERY),
)
