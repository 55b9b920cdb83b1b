"""Runs in files, and systems against each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream2llm.workload.records import RunRecord
from stream2llm.workload.report import (
    Verdict,
    compare,
    load_run,
    ratio_interval,
    report_markdown,
    save_run,
)
from stream2llm.workload.report.compare import PROVENANCE
from stream2llm.workload.report.save import RunFileError
from tests.runs import a_failed_record, a_record, a_run, with_ttfts

FAST = [0.1 + number / 1000 for number in range(200)]
SLOW = [0.5 + number / 1000 for number in range(200)]


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    run = a_run(
        a_record(),
        a_failed_record(sealed_s=None),
        counters={"preemptions_swap": 2.0},
        settings={"load": 1.5, "policy": "fcfs", "max_tokens": 16},
    )
    save_run(run, tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == run


def test_a_file_of_before_a_field_was_added_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    save_run(a_run(), path)
    value = json.loads(path.read_text())
    for session in value["run"]["sessions"]:
        del session["generator_lateness_s"]
    path.write_text(json.dumps(value))
    assert load_run(path) == a_run()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no", "is not JSON"),
        ("[]", "is no run"),
        ('{"schema": "stream2llm.trace"}', "is no run"),
        ('{"schema": "stream2llm.run", "schema_version": 2}', "version 2"),
        ('{"schema": "stream2llm.run", "schema_version": 1}', "run: "),
        ('{"schema": "stream2llm.run", "schema_version": 1, "run": {}}', "run.system"),
    ],
)
def test_what_is_no_run_is_refused_by_name(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(RunFileError, match=message) as caught:
        load_run(path)
    assert "x.json" in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"gone\.json: cannot be read"):
        load_run(tmp_path / "gone.json")


# -- comparing ------------------------------------------------------------------------


def test_a_clear_difference_is_better_or_worse() -> None:
    interval = ratio_interval(FAST, SLOW, 50)
    assert interval.low < interval.ratio < interval.high < 1
    assert interval.verdict is Verdict.BETTER
    assert ratio_interval(SLOW, FAST, 50).verdict is Verdict.WORSE
    assert ratio_interval(SLOW, FAST, 50, higher_is_better=True).verdict is Verdict.BETTER


def test_an_interval_around_one_is_equal() -> None:
    assert ratio_interval(FAST, FAST, 99).verdict is Verdict.EQUAL


def test_nothing_against_nothing_is_equal_and_against_zero_infinite() -> None:
    assert ratio_interval([0.0], [0.0], 50).ratio == 1
    against_zero = ratio_interval([1.0], [0.0], 50)
    assert (against_zero.low, against_zero.verdict) == (float("inf"), Verdict.WORSE)


def test_a_ratio_needs_values() -> None:
    with pytest.raises(ValueError, match="both sides"):
        ratio_interval([], FAST, 50)


def runs_of_two_systems() -> list[RunRecord]:
    return [
        a_run(*with_ttfts(FAST), system="ours"),
        a_run(*with_ttfts(SLOW), system="theirs"),
        a_run(*with_ttfts(SLOW, gap_s=0.5), system="theirs"),
        a_run(*with_ttfts(SLOW), system="theirs", trace="another"),
    ]


def test_only_runs_of_equal_load_and_trace_are_compared() -> None:
    compared = compare(runs_of_two_systems(), "ours")
    (found,) = [each for each in compared if (each.latency, each.percentile) == ("ttft", 99.0)]
    assert (found.theirs, found.request_rate) == ("theirs", pytest.approx(1.0))
    assert found.interval.verdict is Verdict.BETTER


def test_traces_of_one_name_that_were_made_differently_are_not_compared() -> None:
    ours, equal, other = (
        a_run(*with_ttfts(FAST), system=system, settings={PROVENANCE: provenance})
        for system, provenance in (("ours", "seed 1"), ("equal", "seed 1"), ("other", "seed 2"))
    )
    assert {each.theirs for each in compare([ours, equal, other], "ours")} == {"equal"}


def test_what_has_no_values_is_not_compared() -> None:
    runs = [a_run(system="ours"), a_run(a_failed_record(), system="theirs")]
    assert compare(runs, "ours") == []


def test_the_markdown_report_has_every_table() -> None:
    late = a_run(a_record(generator_lateness_s=5.0), a_failed_record(), system="theirs")
    text = report_markdown([a_run(a_record(), a_failed_record()), late], ours="ours")
    assert "generator itself was late" in text
    assert "| ours | a test | – | 1 | 1 |" in text
    assert "| TTFT from seal | ours |" in text
    assert "| ours | – | UNAVAILABLE | 1 |" in text
    assert "## Compared" in text
    assert "| equal | 1 / 1 |" in text


def test_a_bar_in_a_name_does_not_end_the_cell() -> None:
    assert r"a\|b" in report_markdown([a_run(system="a|b")])
