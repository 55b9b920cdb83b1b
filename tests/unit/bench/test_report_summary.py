"""A run in numbers, and under the names of `vllm bench serve`."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from stream2llm.workload.replay.lateness import lag_counters, with_missed
from stream2llm.workload.report import PERCENTILES, lateness_warning, summarize, summary_to_json
from stream2llm.workload.report.lateness import LOOP_LAG_P99, generator_lateness_s
from stream2llm.workload.report.markdown import summary_table
from tests.runs import a_failed_record, a_record, a_run, with_ttfts


def test_the_latencies_of_one_session() -> None:
    found = summarize(a_run(a_record())).latencies_s
    means = {name: each.mean if each else None for name, each in found.items()}
    assert means == pytest.approx(
        {
            "ttft": 0.5,
            "ttft_from_open": 2.5,
            "ttft_from_due": 0.5,
            "itl": 0.15,  # 0.1 and 0.2; two tokens of one message have no gap
            "tpot": 0.1,
            "e2el": 1.0,
            "e2el_from_open": 3.0,
            "lateness": 0.0,
            "generator_lateness": 0.0,
        }
    )


def test_a_session_without_an_answer_is_counted_by_its_error_and_has_no_latency() -> None:
    run = a_run(
        a_record(), a_failed_record("a"), a_failed_record("b"), a_failed_record("c", error="X")
    )
    found = summary_to_json(summarize(run))
    assert (found["completed"], found["failed"]) == (1, 3)
    assert found["error_counts"] == {"UNAVAILABLE": 2, "X": 1}
    assert found["mean_ttft_ms"] == pytest.approx(500)
    assert found["mean_e2el_ms"] == pytest.approx(1000)
    assert found["request_throughput"] == 0.1
    assert found["total_input_tokens"] == 100
    assert found["computed_tokens"] == 480  # was spent for all of them


def test_goodput_is_the_share_of_sessions_with_a_deadline_that_met_it() -> None:
    """The record's TTFT is half a second; one without an answer has missed its deadline."""
    run = a_run(
        a_record("met", ttft_slo_s=0.5),
        a_record("missed", ttft_slo_s=0.4),
        a_failed_record("failed", ttft_slo_s=9.0),
        a_record("none"),
    )
    found = summary_to_json(summarize(run))
    assert found["goodput_ratio"] == pytest.approx(1 / 3)
    assert found["sessions_with_deadline"] == 3
    assert found["request_goodput"] == pytest.approx(1 / run.duration_s)
    assert "| 33.3% |" in summary_table([summarize(run)])


def test_figures_that_do_not_exist_are_null() -> None:
    found = summary_to_json(summarize(a_run(a_failed_record(), duration_s=0.0)))
    assert found["p99_ttft_ms"] is None
    assert found["request_rate"] is None
    assert found["goodput_ratio"] is None
    assert found["request_goodput"] is None
    assert found["preemptions"] is None
    assert found["request_throughput"] == 0.0


def test_percentiles_are_numpys() -> None:
    ttfts_s = [number / 1000 for number in range(1001)]
    found = summary_to_json(summarize(a_run(*with_ttfts(ttfts_s))))
    percents = ("p50", "p95", "p99", "p99.9")
    assert [found[f"{p}_ttft_ms"] for p in percents] == pytest.approx([500, 950, 990, 999])
    assert found["median_ttft_ms"] == found["p50_ttft_ms"]
    assert found["max_ttft_ms"] == pytest.approx(1000)
    assert found["request_rate"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("counters", "preemptions"),
    [
        ({}, None),
        ({"preemptions": 3.0, "preemptions_swap": 2.0}, 3.0),
        ({"preemptions_swap": 2.0, "preemptions_recompute": 5.0, "other": 9.0}, 7.0),
    ],
)
def test_preemptions_are_the_total_or_the_sum_of_their_kinds(
    counters: dict[str, float], preemptions: float | None
) -> None:
    assert summarize(a_run(counters=counters)).preemptions == preemptions


def test_waiting_before_the_seal_is_in_the_time_from_its_due_moment() -> None:
    blocked = a_record(seal_due_s=2.0)
    found = summary_to_json(summarize(a_run(blocked)))
    assert found["mean_ttft_ms"] == pytest.approx(500)
    assert found["mean_ttft_from_due_ms"] == pytest.approx(1500)


def test_recomputed_tokens_come_from_the_system_where_sessions_do_not_tell() -> None:
    counters = {"recomputed_tokens": 7.0}
    silent = a_record(recomputed_tokens=None)
    assert summarize(a_run(silent, counters=counters)).tokens_by_kind["recomputed"] == 7
    assert summarize(a_run(a_record(), counters=counters)).tokens_by_kind["recomputed"] == 10


def test_tokens_that_only_the_system_tells_are_its_counters_and_nobody_s_are_null() -> None:
    silent = a_record(computed_tokens=None, reused_tokens=None, invalidated_tokens=None)
    counters = {"reused_across_sessions_tokens": 3.0, "reused_within_session_tokens": 4.0}
    counters |= {"computed_tokens": 5.0, "recomputed_as_cheaper": 9.0}
    found = summarize(a_run(silent, counters=counters))
    counted = {"computed": 5, "reused": 7, "invalidated": None}
    assert counted.items() <= found.tokens_by_kind.items()
    assert summary_to_json(found)["invalidated_tokens"] is None


def test_a_stall_counts_for_all_who_would_have_been_woken_meanwhile() -> None:
    assert with_missed(0.0, 0.05) == [0.0]
    assert with_missed(0.12, 0.05) == pytest.approx([0.12, 0.07, 0.02])
    lags_s = [*[0.0] * 900, *with_missed(5.0, 0.05)]
    assert lag_counters(lags_s)[LOOP_LAG_P99] > 4.0


def test_peaks() -> None:
    early = a_record("a", opened_s=0.0, ended_s=1.0, token_times_s=(0.5,))
    late = a_record("b", opened_s=1.0, ended_s=4.0, token_times_s=(3.1, 3.2, 4.0))
    beside = a_record("c", opened_s=2.0, ended_s=4.0, token_times_s=(3.9,))
    summary = summarize(a_run(early, late, beside))
    assert summary.peak_sessions == 2  # the first had ended
    assert summary.peak_output_tokens_per_s == 3


def test_key_names_are_those_of_vllm() -> None:
    vllm = find_spec("vllm")
    if vllm is None or vllm.origin is None:
        pytest.skip("vLLM is not installed")
    # Read, not imported: importing it starts half of an engine.
    source = (Path(vllm.origin).parent / "benchmarks" / "serve.py").read_text()
    literal = set(re.findall(r'^ {12}"(\w+)": (?:metrics\.|benchmark_)', source, re.MULTILINE))
    # Goodput needs a promise, which we have none of; the rest are other tasks' figures.
    others = {"request_goodput", "rtfx", "input_sequence_throughput", "total_input_sequences"}
    found = summary_to_json(summarize(a_run()))
    assert literal - others
    assert literal - others <= found.keys()
    percents = [f"p{percent:g}" for percent in PERCENTILES]
    for metric in re.findall(r'process_one_metric\("(\w+)"', source):
        for word in ("mean", "median", "std", *percents):
            assert f"{word}_{metric}_ms" in found


# -- lateness -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttft_s", "late_s", "warns"),
    [
        (0.01, 0.009, False),  # below 10 ms
        (0.01, 0.011, True),
        (1.0, 0.049, False),  # below 5 % of the median TTFT
        (1.0, 0.051, True),
    ],
)
def test_a_late_generator_is_told(ttft_s: float, late_s: float, warns: bool) -> None:
    record = a_record(token_times_s=(3.0 + ttft_s,), generator_lateness_s=late_s)
    warning = lateness_warning(summarize(a_run(record)))
    assert bool(warning) == warns
    assert not warns or "generator itself was late" in warning


def test_a_late_event_loop_counts_as_well() -> None:
    summary = summarize(a_run(counters={LOOP_LAG_P99: 0.2}))
    assert generator_lateness_s(summary) == 0.2
    assert "200.0 ms" in lateness_warning(summary)


def test_waiting_for_the_system_is_no_fault_of_the_generator() -> None:
    blocked = a_record(lateness_s=30.0)
    assert lateness_warning(summarize(a_run(blocked))) == ""
