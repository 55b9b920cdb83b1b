"""Pooling repetitions, pairing systems, and what is called better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from experiments.baselines.cells import (
    DISAGGREGATED_WARMED,
    NON_STREAMING,
    WARMED,
    mixed,
    ours,
)
from experiments.baselines.verdicts import DEFAULT, against_all, pooled, verdict_tables, wanted
from stream2llm.workload.records import RunRecord, SessionRecord
from stream2llm.workload.report import Verdict
from stream2llm.workload.report.lateness import LOOP_LAG_P99
from stream2llm.workload.report.summary import REQUEST_RATE, request_rate

CELL = "engine crawler heavy"
FCFS = ours("fcfs")


def a_session(number: int, ttft_s: float | None, due_s: float | None = None) -> SessionRecord:
    due = float(number) if due_s is None else due_s
    return SessionRecord(
        session_id=f"q{number}",
        due_s=due,
        opened_s=due,
        seal_due_s=due + 1,
        sealed_s=due + 1,
        token_times_s=() if ttft_s is None else (due + 1 + ttft_s,),
        ended_s=due + 1 + (ttft_s or 0),
        num_prompt_tokens=100,
        error="no whole answer in time" if ttft_s is None else "",
    )


def a_run(
    system: str, ttfts_s: Sequence[float | None], repetition: int = 1, duration_s: float = 100.0
) -> RunRecord:
    sessions = tuple(a_session(number, each) for number, each in enumerate(ttfts_s))
    settings = {"repetition": repetition}
    return RunRecord(system, CELL, duration_s, sessions, (), {"cpu_s": 5.0}, settings)


def around(ttft_s: float) -> list[float | None]:
    return [ttft_s * (1 + number / 1000) for number in range(100)]


def test_a_peer_that_takes_longer_makes_us_better_and_the_ratio_says_how_much() -> None:
    runs = [a_run(NON_STREAMING, around(1.0)), a_run(FCFS, around(0.1))]
    (found,) = against_all(runs)
    assert found.theirs == NON_STREAMING
    for ratio in found.ratios.values():
        assert ratio.verdict is Verdict.BETTER
        assert ratio.ratio == pytest.approx(10.0, rel=0.01)


def test_equal_times_are_equal_and_longer_ones_worse() -> None:
    runs = [a_run(NON_STREAMING, around(1.0)), a_run(WARMED, around(0.5)), a_run(FCFS, around(1.0))]
    to_non_streaming, to_warmed = against_all(runs)
    verdicts = [found.ratios[50.0] for found in (to_non_streaming, to_warmed)]
    assert [ratio.verdict for ratio in verdicts if ratio] == [Verdict.EQUAL, Verdict.WORSE]


def test_the_default_policy_is_a_peer_to_the_others_and_not_to_itself() -> None:
    runs = [a_run(name, around(1.0)) for name in (NON_STREAMING, DEFAULT, FCFS)]
    pairs = {(found.ours, found.theirs) for found in against_all(runs)}
    assert pairs == {(DEFAULT, NON_STREAMING), (FCFS, NON_STREAMING), (FCFS, DEFAULT)}


def test_percentiles_are_those_of_all_repetitions_and_completion_is_the_median() -> None:
    theirs = [a_run(NON_STREAMING, around(1.0), number, 100.0 + number) for number in (1, 2, 3)]
    mine = [a_run(FCFS, around(0.5), number, 51.0 * number) for number in (1, 2, 3)]
    (found,) = against_all([*theirs, *mine])
    assert found.completion == pytest.approx(102.0 / 102.0)


def test_failures_are_counted_on_both_sides_and_have_no_ratio_where_nobody_answers() -> None:
    runs = [a_run(NON_STREAMING, [None, None]), a_run(FCFS, [0.1, None])]
    (found,) = against_all(runs)
    assert (found.our_failed, found.their_failed) == (1, 2)
    assert set(found.ratios.values()) == {None}


def test_pooled_repetitions_follow_each_other_at_the_same_times_for_all_systems() -> None:
    runs = [
        a_run(NON_STREAMING, [1.0, 1.0], 1, 100.0),
        a_run(FCFS, [1.0, 1.0], 1, 90.0),
        a_run(FCFS, [1.0, 1.0], 2, 95.0),
        a_run(NON_STREAMING, [1.0, 1.0], 2, 80.0),
    ]
    for record in pooled(runs):
        assert [session.due_s for session in record.sessions] == [0.0, 1.0, 100.0, 101.0]
        assert len({session.session_id for session in record.sessions}) == 4
        assert record.settings["repetitions"] == 2
        assert record.counters == {"cpu_s": 10.0}


def test_pooled_counters_are_sums_but_for_shares_and_lags() -> None:
    runs = [a_run(FCFS, [1.0], number) for number in (1, 2)]
    counted = [
        replace(run, counters={"cpu_s": 5.0, "others_share": share, LOOP_LAG_P99: lag_s})
        for run, share, lag_s in zip(runs, (0.02, 0.04), (0.003, 0.001), strict=True)
    ]
    (record,) = pooled(counted)
    assert record.counters == pytest.approx(
        {"cpu_s": 10.0, "others_share": 0.03, LOOP_LAG_P99: 0.003}
    )


def test_pooled_repetitions_keep_the_rate_that_each_was_played_at() -> None:
    runs = [a_run(FCFS, [1.0, 1.0], number) for number in (1, 2)]
    rated = [replace(run, settings={**run.settings, REQUEST_RATE: 12.5}) for run in runs]
    assert request_rate(pooled(rated)[0]) == 12.5


def test_what_is_wanted_is_judged_at_heavy_load_for_policies_but_the_default() -> None:
    runs = [
        a_run(NON_STREAMING, around(1.0)),
        a_run(WARMED, around(0.05)),
        a_run(DEFAULT, around(0.2)),
        a_run(FCFS, around(0.09), duration_s=102.0),
    ]
    holds = {row.what.removeprefix(f"{CELL}: "): row.holds for row in wanted(against_all(runs))}
    assert holds == {
        f"median TTFT of {FCFS} 10 x that of {NON_STREAMING} or better": True,
        f"{FCFS} completes the trace within 1 % of {NON_STREAMING}": False,
        f"{FCFS} better than {WARMED} at P50, P95 and P99": False,
        f"{FCFS} better than {DEFAULT} at P50, P95 and P99": True,
    }


def test_a_mixed_cluster_has_to_be_as_good_as_every_stock_system() -> None:
    by_mixed = mixed("srpf")
    runs = [
        a_run(NON_STREAMING, around(0.9)),
        a_run(DISAGGREGATED_WARMED, around(0.1)),
        a_run(WARMED, around(0.05)),
        a_run(DEFAULT, around(0.05)),
        a_run(by_mixed, around(0.1)),
    ]
    found = wanted(against_all(runs))
    holds = {row.what.removeprefix(f"{CELL}: "): row.holds for row in found}
    assert holds == {
        f"median TTFT of {by_mixed} 8 x that of {NON_STREAMING} or better": True,
        f"{by_mixed} completes the trace within 1 % of {NON_STREAMING}": True,
        f"{by_mixed} better than or equal to {NON_STREAMING} at P50, P95 and P99": True,
        f"{by_mixed} better than or equal to {DISAGGREGATED_WARMED} at P50, P95 and P99": True,
        f"{by_mixed} better than or equal to {WARMED} at P50, P95 and P99": False,
    }


def test_the_tables_show_failures_and_verdicts() -> None:
    text = verdict_tables([a_run(NON_STREAMING, [1.0, None]), a_run(FCFS, [0.1, 0.1])])
    assert f"| {NON_STREAMING} | 1 | 1 |" in text
    assert "better" in text
    assert "0, 1 |" in text
