"""The first page: is the service well, and how fast does it answer."""

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

_NOW = Row(
    "Now",
    (
        Panel(
            "Workers that serve",
            "Replicas that routers use, by role. Fewer than configured: see `stream2llm status`.",
            "none",
            totals("stream2llm_worker_up", "role"),
            width=6,
            kind="stat",
        ),
        Panel(
            "Open sessions",
            "Sessions that a router has open.",
            "none",
            (Query(total("stream2llm_sessions_active", where=MODEL), "open"),),
            width=6,
            kind="stat",
        ),
        Panel(
            "TTFT from the seal, P95",
            "Seconds from the end of the context to the first token.",
            "s",
            percentiles(_TTFT, where=MODEL)[1:2],
            width=6,
            kind="stat",
        ),
        Panel(
            "Sessions that failed",
            "Share of the sessions that ended with an error; cancelled ones do not count.",
            "percentunit",
            (Query(f"{_FAILED} or vector(0)", "failed"),),
            width=6,
            kind="stat",
        ),
    ),
)
_TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Sessions that ended",
            "Sessions a second by outcome: ok, cancelled, or a gRPC status.",
            "cps",
            rates(_ENDED, "outcome", MODEL),
        ),
        Panel(
            "Errors",
            "RPCs a second that ended with an error, refused ones included, by reason.",
            "cps",
            rates("stream2llm_errors_total", "reason", MODEL, or_zero=True),
        ),
        Panel(
            "Calls that were not admitted",
            "Calls a second that were refused for their credentials, by listener and reason.",
            "cps",
            (
                Query(
                    rate("stream2llm_calls_not_admitted_total", "listener, reason"),
                    "{{listener}} {{reason}}",
                ),
            ),
        ),
        Panel(
            "Tokens",
            "Tokens a second: received as context, computed by prefill, reused, sent as answers.",
            "cps",
            tuple(Query(rate(f"stream2llm_{name}", where=MODEL), word) for name, word in _TOKENS),
        ),
        Panel(
            "Time to first token",
            "Seconds from the seal to the first token.",
            "s",
            percentiles(_TTFT, where=MODEL),
        ),
    ),
)
_HTTP = Row(
    "HTTP",
    (
        Panel(
            "HTTP requests by status",
            "Requests a second that gateways have answered, by status; 499: the client left first.",
            "cps",
            rates("stream2llm_gateway_requests_total", "status", or_zero=True),
        ),
        Panel(
            "HTTP requests under way",
            "Requests that gateways answer now, streams and open WebSockets included.",
            "none",
            (Query(total("stream2llm_gateway_requests_in_flight") + " or vector(0)", "under way"),),
        ),
    ),
)
OVERVIEW = Dashboard(
    "stream2llm-overview",
    "Stream2LLM / Overview",
    "Whether the cluster serves, how many sessions it has, and how long they wait.",
    (_NOW, _TRAFFIC, _HTTP),
)
