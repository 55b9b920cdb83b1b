"""Runs for tests of reports: builders with defaults."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stream2llm.workload.records import RunRecord, Sample, SessionRecord

# Lines of a prefill worker's metrics that a replay reads, and one that it does not.
PREFILL_PAGE = """\
# HELP vllm:num_requests_running x
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 3.0
stream2llm_worker_sessions{role="prefill"} 7.0
stream2llm_kv_blocks{role="prefill"} 400.0
stream2llm_kv_blocks_held{role="prefill"} 100.0
stream2llm_prefill_sessions{state="with_work"} 2.0
stream2llm_prefill_sessions{state="idle"} 5.0
stream2llm_preemptions_total{action="swap",policy="fcfs",role="prefill"} 4.0
stream2llm_preemptions_total{action="swap",policy="lcas",role="prefill"} 1.0
stream2llm_preemptions_total{action="recompute",policy="lcas",role="prefill"} 2.0
stream2llm_prefill_tokens_total{kind="recomputed"} 64.0
stream2llm_swap_failures_total 0.0
stream2llm_scheduler_policy_info{policy="fcfs",role="prefill"} 0.0
stream2llm_scheduler_policy_info{policy="lcas",role="prefill"} 1.0
"""


def a_record(name: str = "q0", **changes: Any) -> SessionRecord:
    """Opened at 1 s, sealed at 3 s; tokens at 3.5, 3.6 and, two of them, 3.8 s."""
    values: dict[str, Any] = {
        "session_id": name,
        "due_s": 1.0,
        "opened_s": 1.0,
        "seal_due_s": 3.0,
        "sealed_s": 3.0,
        "token_times_s": (3.5, 3.6, 3.8, 3.8),
        "ended_s": 4.0,
        "num_prompt_tokens": 100,
        "computed_tokens": 120,
        "reused_tokens": 30,
        "invalidated_tokens": 40,
        "recomputed_tokens": 10,
    }
    return SessionRecord(**(values | changes))


def a_failed_record(name: str = "bad", error: str = "UNAVAILABLE", **changes: Any) -> SessionRecord:
    return a_record(name, **({"error": error, "token_times_s": ()} | changes))


def with_ttfts(ttfts_s: Iterable[float], gap_s: float = 1.0) -> tuple[SessionRecord, ...]:
    """Sessions `gap_s` apart with these times to the first of two tokens."""
    return tuple(
        a_record(
            f"q{number}",
            due_s=number * gap_s,
            opened_s=number * gap_s,
            seal_due_s=number * gap_s + 1,
            sealed_s=number * gap_s + 1,
            token_times_s=(number * gap_s + 1 + ttft_s, number * gap_s + 1.5 + ttft_s),
            ended_s=number * gap_s + 1.5 + ttft_s,
        )
        for number, ttft_s in enumerate(ttfts_s)
    )


def a_run(*sessions: SessionRecord, **changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "system": "ours",
        "trace": "a test",
        "duration_s": 10.0,
        "sessions": sessions or (a_record(),),
        "samples": (Sample(0.5, 0.25, 3, 1), Sample(1.5, 0.5, 2, 2)),
    }
    return RunRecord(**(values | changes))
