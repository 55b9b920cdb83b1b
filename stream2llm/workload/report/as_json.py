"""A summary as JSON, under the names that `vllm bench serve` gives the same figures.

Where it has a figure the name and the unit are its own (milliseconds, tokens a
second); ours that it lacks are named in its manner. One difference: a figure
that does not exist, as the percentiles of no value, is null and not 0.
"""

from __future__ import annotations

from typing import Any

from stream2llm.workload.report.statistics import PERCENTILES, Distribution, percent_word
from stream2llm.workload.report.summary import Summary

MILLISECONDS = 1000.0


def summary_to_json(summary: Summary) -> dict[str, Any]:
    """Plain data for `json.dumps`."""
    result: dict[str, Any] = _of_vllm(summary) | _of_ours(summary)
    for name, found in summary.latencies_s.items():
        result |= _latency(name, found)
    return result


def _of_vllm(summary: Summary) -> dict[str, Any]:
    tokens = summary.input_tokens + summary.output_tokens
    return {
        "num_prompts": summary.completed + summary.failed,
        "request_rate": summary.request_rate,
        "duration": summary.duration_s,
        "completed": summary.completed,
        "failed": summary.failed,
        "total_input_tokens": summary.input_tokens,
        "total_output_tokens": summary.output_tokens,
        "request_throughput": summary.per_second(summary.completed),
        "request_goodput": summary.per_second(summary.in_time) if summary.with_deadline else None,
        "output_throughput": summary.per_second(summary.output_tokens),
        "total_token_throughput": summary.per_second(tokens),
        "max_output_tokens_per_s": summary.peak_output_tokens_per_s,
        "max_concurrent_requests": summary.peak_sessions,
    }


def _of_ours(summary: Summary) -> dict[str, Any]:
    return {
        "system": summary.system,
        "trace": summary.trace,
        # vLLM's `errors` is a list, one text for each request.
        "error_counts": dict(summary.errors),
        "sessions_with_deadline": summary.with_deadline,
        "goodput_ratio": summary.goodput,
        **{f"{kind}_tokens": count for kind, count in summary.tokens_by_kind.items()},
        "preemptions": summary.preemptions,
        "counters": dict(summary.counters),
        "settings": dict(summary.settings),
    }


def _latency(name: str, found: Distribution | None) -> dict[str, float | None]:
    percents = {f"p{percent_word(percent)}": percent for percent in PERCENTILES}
    if found is None:
        words = ("mean", "median", "std", "max", *percents)
        return {f"{word}_{name}_ms": None for word in words}
    values = {
        "mean": found.mean,
        "median": found.median,
        "std": found.std,
        "max": found.maximum,
        **{word: found.percentiles[percent] for word, percent in percents.items()},
    }
    return {f"{word}_{name}_ms": value * MILLISECONDS for word, value in values.items()}
