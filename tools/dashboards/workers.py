"""Each worker, by name and node."""

from __future__ import annotations

from tools.dashboards.model import Dashboard, Panel, Query, Row, rate, share, total

_WORKER = "worker, instance"


def _vllm(name: str) -> str:
    """Matches a metric of vLLM: its colon arrives as an underscore where Prometheus 2 asks for it."""
    return f'__name__=~"vllm[:_]{name}"'


_REPLICAS = Row(
    "Replicas",
    (
        Panel(
            "Serving",
            "1 while routers use the replica, else 0.",
            "none",
            (Query("stream2llm_worker_up", "{{worker}}"),),
        ),
        Panel(
            "Replaced",
            "How often a replica was created again, or the controller started again.",
            "none",
            (
                Query("stream2llm_worker_restarts_total", "{{worker}}"),
                Query("stream2llm_controller_restarts_total", "controller"),
            ),
        ),
        Panel(
            "Lost",
            "Workers and routers that were lost within the hour, by cause; drained ones do not count.",
            "none",
            (Query("sum by (cause) (increase(stream2llm_worker_losses_total[1h]))", "{{cause}}"),),
        ),
        Panel(
            "Sessions",
            "Sessions that each worker holds.",
            "none",
            (Query(total("stream2llm_worker_sessions", _WORKER), "{{worker}}"),),
        ),
        Panel(
            "KV blocks held",
            "Share of each worker's KV blocks that a session or a lease holds.",
            "percentunit",
            (
                Query(
                    share(
                        total("stream2llm_kv_blocks_held", _WORKER),
                        total("stream2llm_kv_blocks", _WORKER),
                    ),
                    "{{worker}}",
                ),
            ),
        ),
    ),
)
_ENGINES = Row(
    "Engines",
    (
        Panel(
            "Answer tokens",
            "Tokens a second that each engine has generated, as vLLM counts them.",
            "cps",
            (Query(rate("", _WORKER, _vllm("generation_tokens_total")), "{{worker}}"),),
        ),
        Panel(
            "KV cache usage",
            "Share of each engine's KV cache in use, as vLLM counts it.",
            "percentunit",
            (Query(f"{{{_vllm('kv_cache_usage_perc')}}}", "{{worker}}"),),
        ),
    ),
)
WORKERS = Dashboard(
    "stream2llm-workers",
    "Stream2LLM / Workers",
    "Replicas: whether they serve, how often they were lost and replaced, and what each one holds.",
    (_REPLICAS, _ENGINES),
)
