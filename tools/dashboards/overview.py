"""The first page: is the service well, and how fast does it answer."""

from __future__ import annotations

from tools.dashboards.model import Dashboard, Panel, Query, Row, percentiles, rate, share, total

_MODEL = 'model=~"$model"'
_TTFT = "stream2llm_time_to_first_token_seconds"

OVERVIEW = Dashboard(
    "stream2llm-overview",
    "Stream2LLM / Overview",
    "Whether the cluster serves, how many sessions it has, and how long they wait.",
    (
        Row(
            "Now",
            (
                Panel(
                    "Workers that serve",
                    "Replicas that routers use, by role. Fewer than configured: see `stream2llm status`.",
                    "none",
                    (Query(total("stream2llm_worker_up", "role"), "{{role}}"),),
                    width=6,
                    kind="stat",
                ),
                Panel(
                    "Open sessions",
                    "Sessions that a router has open.",
                    "none",
                    (Query(total("stream2llm_sessions_active", where=_MODEL), "open"),),
                    width=6,
                    kind="stat",
                ),
                Panel(
                    "TTFT from the seal, P95",
                    "Seconds from the end of the context to the first token.",
                    "s",
                    percentiles(_TTFT, where=_MODEL)[1:2],
                    width=6,
                    kind="stat",
                ),
                Panel(
                    "Sessions that failed",
                    "Share of the sessions that ended with an error; cancelled ones do not count.",
                    "percentunit",
                    (
                        Query(
                            share(
                                rate(
                                    "stream2llm_sessions_total",
                                    where=f'{_MODEL}, outcome!~"ok|cancelled"',
                                ),
                                rate("stream2llm_sessions_total", where=_MODEL),
                            )
                            + " or vector(0)",
                            "failed",
                        ),
                    ),
                    width=6,
                    kind="stat",
                ),
            ),
        ),
        Row(
            "Traffic",
            (
                Panel(
                    "Sessions that ended",
                    "Sessions a second by outcome: ok, cancelled, or a gRPC status.",
                    "cps",
                    (Query(rate("stream2llm_sessions_total", "outcome", _MODEL), "{{outcome}}"),),
                ),
                Panel(
                    "Errors",
                    "RPCs a second that ended with an error, refused ones included, by reason.",
                    "cps",
                    (
                        Query(
                            rate("stream2llm_errors_total", "reason", _MODEL) + " or vector(0)",
                            "{{reason}}",
                        ),
                    ),
                ),
                Panel(
                    "Tokens",
                    "Tokens a second: received as context, computed by prefill, reused, sent as answers.",
                    "cps",
                    tuple(
                        Query(rate(f"stream2llm_{name}_tokens{rest}", where=_MODEL), legend)
                        for name, rest, legend in (
                            ("input", "_total", "received"),
                            ("input", "_prefilled_total", "prefilled"),
                            ("input", "_reused_total", "reused"),
                            ("output", "_total", "answered"),
                        )
                    ),
                ),
                Panel(
                    "Time to first token",
                    "Seconds from the seal to the first token.",
                    "s",
                    percentiles(_TTFT, where=_MODEL),
                ),
            ),
        ),
    ),
)
