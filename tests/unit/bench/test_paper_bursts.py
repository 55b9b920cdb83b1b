"""Bursts: what is wanted of them, over pairs of seeds, and the arrivals of a recording."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.paired import excess, interval
from experiments.paper import azure
from experiments.paper.bursts import (
    FIGURES,
    RATES,
    Conditions,
    Found,
    by_setting,
    cells,
    condition,
    judgements,
    misses,
    name_of,
    table,
    verdicts,
)
from experiments.paper.kept import Outcome
from experiments.paper.pressed import load_memory
from experiments.paper.runs import asked
from stream2llm.workload.traces.check import TraceError

# In the syntax of the published files: no zone, seven digits, Windows' line ends.
RECORDING = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:03.9799600,3180,8\r\n2023-11-16 18:17:05.9799600,110,27\r\n"
    "2023-11-16 18:17:07.9799600,7433,14\r\n"
)


def a_recording(tmp_path: Path, text: str = RECORDING) -> Path:
    path = tmp_path / "AzureLLMInferenceTrace_code.csv"
    path.write_bytes(text.encode())
    return path


def test_bursts_are_played_on_two_workers_and_with_little_memory_too() -> None:
    workers = condition("crawler", Conditions.WORKERS)
    assert (workers.num_workers, workers.setting.rate) == (2, 2 * RATES["crawler"])
    pressed = condition("crawler", Conditions.PRESSURE)
    assert pressed.memory == pytest.approx(load_memory()["crawler"] * 2.6 / 4, abs=1e-3)
    assert name_of(pressed) == f"crawler 2.6/s, gaps x10, cost, bursts, memory x{pressed.memory:g}"


# -- what is wanted -----------------------------------------------------------------------


def found(fcfs_s: Sequence[float], lcas_s: Sequence[float], srpf_s: Sequence[float]) -> Found:
    """Every figure of a policy is the same, a value for each seed."""
    seconds = {"fcfs": fcfs_s, "lcas": lcas_s, "srpf": srpf_s}
    plan = cells(list(seconds), range(len(srpf_s)), [Conditions.ONE], ["anns"])
    counters = {"recomputed_victims": 1, "swapped_victims": 2}
    return by_setting(
        Outcome(cell, dict.fromkeys(FIGURES, seconds[cell.system][cell.seed]), counters)
        for cell in plan
    )


def verdict_of(judged: Found) -> dict[str, str]:
    return {each.bound.figure: each.verdict for each in judgements(judged, "srpf")}


def test_a_bound_is_missed_by_more_than_chance() -> None:
    """Ten times better than fcfs at the median, twice in the mean; P99 a tenth above lcas."""
    fcfs_s, lcas_s = [10.0, 11.0, 12.0, 10.0], [8.0, 9.0, 8.0, 9.0]
    good = found(fcfs_s, lcas_s, [0.9, 1.0, 1.0, 0.9])
    assert verdict_of(good) == dict.fromkeys(["p50", "mean", "p95", "p99"], "met")
    assert list(misses(judgements(good, "srpf"))) == []
    slow = found(fcfs_s, lcas_s, [8.2, 9.3, 8.4, 9.1])
    assert verdict_of(slow) == {"p50": "missed", "mean": "missed", "p95": "missed", "p99": "met"}
    lines = list(misses(judgements(slow, "srpf")))
    assert lines[0] == "anns 1.1/s, bursts p50: 1.23 x better than fcfs, 10 wanted"
    assert lines[2] == "anns 1.1/s, bursts p95: 0.97 x better than lcas, 1 wanted"
    bad = found(fcfs_s, lcas_s, [9.2, 10.3, 9.4, 10.4])
    assert verdict_of(bad)["p99"] == "missed"


def test_what_so_few_seeds_do_not_say_is_undecided() -> None:
    fcfs_s = [10.0, 10.0, 10.0]
    judged = found(fcfs_s, [20.0] * 3, [2.0, 9.0, 5.0])
    by_figure = {each.bound.figure: each for each in judgements(judged, "srpf")}
    assert by_figure["mean"].verdict == "undecided"
    assert by_figure["mean"].excess_s == interval([2.0, 9.0, 5.0], [5.0] * 3)
    assert "| mean | fcfs | 1.88 | 2 |" in verdicts(by_figure.values())
    assert "mean: " not in "".join(misses(by_figure.values()))


def test_a_single_seed_is_judged_by_its_figures() -> None:
    assert excess([1.0], [4.0], 0.5) == (-1.0, -1.0)
    assert verdict_of(found([10.0], [9.0], [2.0])) == {
        "p50": "missed",
        "mean": "met",
        "p95": "met",
        "p99": "met",
    }


def test_the_table_has_the_means_of_the_seeds() -> None:
    line = "| anns 1.1/s, bursts | srpf | 2.00 | 2.00 | 2.00 | 2.00 | 2.00 | 3 |"
    assert line in table(found([10.0, 10.0], [9.0, 9.0], [1.0, 3.0]))


# -- arrivals of a recording --------------------------------------------------------------


def test_arrivals_of_a_recording_are_stretched_to_the_rate(tmp_path: Path) -> None:
    path = a_recording(tmp_path)
    assert azure.arrivals_s(path, 3.0, 100) == pytest.approx([0.0, 0.0, 0.5, 1.0])
    assert azure.arrivals_s(path, 2.0, 3) == pytest.approx([0.0, 0.0, 1.0])


def test_what_cannot_be_used_of_a_recording_is_left_out_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_recording(tmp_path, RECORDING.replace("2023-11-16 18:17:05.9799600", "soon"))
    assert azure.arrivals_s(path, 1.0, 100) == pytest.approx([0.0, 0.0, 2.0])
    assert "1 rows left out, the first: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "time\n1\n", RECORDING[:75]])
def test_a_file_without_arrivals_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match="AzureLLMInferenceTrace_code"):
        azure.arrivals_s(a_recording(tmp_path, text), 1.0, 10)


def test_a_recording_is_the_same_for_every_seed_and_setting_but_its_rate(tmp_path: Path) -> None:
    path = a_recording(tmp_path)
    plan = cells(["fcfs"], [1, 2], [Conditions.ONE, Conditions.WORKERS], ["anns"], path)
    opened_s = [[each.opened_s for each in asked(cell)] for cell in plan]
    assert opened_s[0] == opened_s[1] == pytest.approx([2 * at_s for at_s in opened_s[2]])
    assert [each.num_tokens for each in asked(plan[0])] != [
        each.num_tokens for each in asked(plan[1])
    ]


def test_the_table_of_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--arrivals", str(a_recording(tmp_path)), "--seeds", "1", "2", "--processes", "1"]
    state = ["--state", str(tmp_path / "state.json")]
    chosen = ["--conditions", "one", "workers", "--shapes", "anns"]
    assert main(["bursts", *options, *state, *chosen]) == 0
    printed = capsys.readouterr()
    assert "AzureLLMInferenceTrace_code.csv; seeds 1 2" in printed.out
    row = "| anns 2.2/s, bursts of AzureLLMInferenceTrace_code.csv, 2 workers | srpf |"
    assert row in printed.out
    assert "12/12 " in printed.err
    assert main(["bursts", *options, *state, *chosen]) == 0
    assert capsys.readouterr() == (printed.out, "")
