"""Deadlines in virtual time: which sessions are in time, and which of them pay for it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments import deadlines
from experiments.kept import KeptFigures
from experiments.paired import interval
from experiments.paper.h200 import load_fit
from experiments.paper.h200 import profile as h200_profile
from stream2llm.cli.simulate import app
from stream2llm.simulator.play_trace import Machine, Way, play_trace
from stream2llm.simulator.work import Change, Task, with_deadlines_of
from stream2llm.workload.records import RunRecord
from stream2llm.workload.report.summary import summarize
from stream2llm.workload.traces.format import Scale
from stream2llm.workload.traces.generate import generate
from stream2llm.workload.traces.write import write_trace
from tests.traces import a_header

MACHINE = Machine(h200_profile(load_fit(), 2048), kv_gib=100.0)


def sealed_at_once(name: str, num_tokens: int, slo_s: float | None) -> Task:
    return Task(name, (Change(0.0, 0, num_tokens, seals=True),), ttft_slo_s=slo_s)


def in_time(run: RunRecord) -> dict[str, bool | None]:
    return {each.session_id: each.is_in_time for each in run.sessions}


def test_a_lost_deadline_does_not_cost_an_open_session_its_own() -> None:
    """Half a second of work is due in a millisecond: the context that streams in goes first."""
    streams = Task(
        "streams",
        (
            Change(0.0, 0, 10, seals=False),
            Change(0.01, 10, 20_000, seals=False),
            Change(0.6, 20_000, 20_010, seals=True),
        ),
        ttft_slo_s=0.1,
    )
    lost = [sealed_at_once(f"lost-{n}", 30_000, 0.001) for n in range(3)]
    known = play_trace(MACHINE, Way(), [streams, *lost], "t")
    unknown = play_trace(MACHINE, Way(), with_deadlines_of([streams, *lost], None), "t")
    ttft_s = {each.session_id: each.ttft_s for each in unknown.sessions}
    assert in_time(known) == {"streams": True, **{each.name: False for each in lost}}
    assert (ttft_s["streams"] or 0) > 0.1
    assert set(in_time(unknown).values()) == {None}


def test_deadlines_that_all_can_be_met_change_nothing() -> None:
    asked = [sealed_at_once(f"s{n}", 2_000 + 500 * n, 1000.0) for n in range(20)]
    runs = [
        play_trace(MACHINE, Way(), each, "t") for each in (asked, with_deadlines_of(asked, None))
    ]
    times = [[each.token_times_s for each in run.sessions] for run in runs]
    assert times[0] == times[1]
    assert summarize(runs[0]).goodput == 1.0


def test_more_answers_are_in_time_where_deadlines_are_known() -> None:
    """A burst of a crawler, a fifth above what the worker can do."""
    cell = deadlines.Cell("crawler", "bursts", 1.2, 7, "srpf", 120)
    found = deadlines.play(cell)
    for kind in deadlines.KINDS:
        others = max(found[kind][system] for system in deadlines.OTHERS)
        assert others <= found[kind]["challenger"] <= found[kind][deadlines.BOUND], kind
    assert found["classes"]["challenger"] > 1.1 * found["classes"]["srpf without"]


def test_the_experiment_reports_differences_of_pairs() -> None:
    cells = [deadlines.Cell("crawler", "Poisson", 1.2, seed, "srpf", 9) for seed in (1, 2, 3)]
    shares = {"fcfs": 0.2, "srpf without": 0.5, "edf": 0.1, "challenger": 0.55, "at most": 0.6}
    outcomes = [
        {"uniform": {system: share + 0.1 * cell.seed for system, share in shares.items()}}
        for cell in cells
    ]
    found = deadlines.results(cells, outcomes)
    (row,) = found.values()
    assert deadlines.best_other(row) == "srpf without"
    assert interval(row["challenger"], row["srpf without"]) == pytest.approx((0.05, 0.05))
    assert "| 1.07 | +5.0 to +5.0 (srpf without) |" in deadlines.table(found, "srpf")
    assert list(deadlines.misses(found)) == [
        "crawler Poisson uniform 120%: 1.07 x srpf without, 1.3 wanted"
    ]
    lost = [{"uniform": each["uniform"] | {"challenger": 0.0}} for each in outcomes]
    worse = deadlines.results(cells, lost)
    assert sum("below" in line for line in deadlines.misses(worse)) == 3


def test_a_run_of_cells_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    cells = [deadlines.Cell("anns", "bursts", 1.2, seed, "srpf", 3) for seed in (1, 2)]
    args = Namespace(processes=1, state=tmp_path / "state.json")
    kept = {kind: dict.fromkeys(("fcfs", deadlines.BOUND), 0.5) for kind in deadlines.KINDS}
    KeptFigures(args.state).add(cells[0], kept)
    first, second = deadlines.outcomes(cells, args)
    assert first == kept
    assert second == deadlines.play(cells[1])
    assert deadlines.outcomes(cells, args) == [first, second]


def test_the_command_shows_goodput_beside_ttft(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trace(path, a_header(), generate("crawler", [0.0, 0.1, 0.2], 1, Scale()))
    options = ["--profile", "h200_llama-3.1-8b_tp2", "--kv-gib", "50"]
    done = CliRunner().invoke(app, ["trace", str(path), *options, "--ttft-slo-ms", "60000"])
    assert done.exit_code == 0, done.output
    assert "100.0%" in done.output
