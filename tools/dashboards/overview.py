"""The first page: is the service well, and how fast does it answer."""

from __future__ import annotations

from tools.dashboards.model import (
    MODEL,
    Dashboard,
    Query,
    else_zero,
    figure,
    panel,
    percentiles,
    rate,
    rates,
    row,
    share,
    total,
    totals,
)

_TTFT = "stream2llm_time_to_first_token_seconds"
_ENDED = "stream2llm_sessions_total"
_FAILED = share(rate(_ENDED, where=f'{MODEL}, outcome!~"ok|cancelled"'), rate(_ENDED, where=MODEL))
_TOKENS = (
    ("input_tokens_total", "received"),
    ("input_tokens_prefilled_total", "prefilled"),
    ("input_tokens_reused_total", "reused"),
    ("output_tokens_total", "answered"),
)

_NOW = row(
    "Now",
    figure(
        "Workers that serve",
        "Replicas that routers use, by role. Fewer than configured: see `stream2llm status`.",
        "none",
        totals("stream2llm_worker_up", "role"),
    ),
    figure(
        "Open sessions",
        "Sessions that a router has open.",
        "none",
        Query(total("stream2llm_sessions_active", where=MODEL), "open"),
    ),
    figure(
        "TTFT from the seal, P95",
        "Seconds from the end of the context to the first token.",
        "s",
        percentiles(_TTFT, where=MODEL)[1],
    ),
    figure(
        "Sessions that failed",
        "Share of the sessions that ended with an error; cancelled ones do not count.",
        "percentunit",
        Query(else_zero(_FAILED), "failed"),
    ),
)
_TRAFFIC = row(
    "Traffic",
    panel(
        "Sessions that ended",
        "Sessions a second by outcome: ok, cancelled, or a gRPC status.",
        "cps",
        rates(_ENDED, "outcome", MODEL),
    ),
    panel(
        "Errors",
        "RPCs a second that ended with an error, refused ones included, by reason.",
        "cps",
        rates("stream2llm_errors_total", "reason", MODEL, or_zero=True),
    ),
    panel(
        "Calls that were not admitted",
        "Calls a second that were refused for their credentials, by listener and reason.",
        "cps",
        rates("stream2llm_calls_not_admitted_total", "listener, reason"),
    ),
    panel(
        "Tokens",
        "Tokens a second: received as context, computed by prefill, reused, sent as answers.",
        "cps",
        *(Query(rate(f"stream2llm_{name}", where=MODEL), word) for name, word in _TOKENS),
    ),
    panel(
        "Time to first token",
        "Seconds from the seal to the first token.",
        "s",
        *percentiles(_TTFT, where=MODEL),
    ),
)
_HTTP = row(
    "HTTP",
    panel(
        "HTTP requests by status",
        "Requests a second that gateways have answered, by status; 499: the client left first.",
        "cps",
        rates("stream2llm_gateway_requests_total", "status", or_zero=True),
    ),
    panel(
        "HTTP requests under way",
        "Requests that gateways answer now, streams and open WebSockets included.",
        "none",
        Query(else_zero(total("stream2llm_gateway_requests_in_flight")), "under way"),
    ),
)
OVERVIEW = Dashboard(
    "stream2llm-overview",
    "Stream2LLM / Overview",
    "Whether the cluster serves, how many sessions it has, and how long they wait.",
    (_NOW, _TRAFFIC, _HTTP),
)
