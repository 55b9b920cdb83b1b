"""Outcomes of cells in a file: a long run goes on where it was stopped."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from cost_profiles.decision import Mode
from experiments.paired import interval
from experiments.paper.grid import outcomes
from experiments.paper.kept import KeptOutcomes, Outcome
from experiments.paper.policies import Arrivals, cells, misses, results
from experiments.paper.published import QUANTILES, Setting
from experiments.paper.runs import Cell

CELL = Cell(Setting("crawler", 4.0, 10.0, Mode.COST), "srpf", seed=1)


def in_mode(mode: Mode) -> Cell:
    return replace(CELL, setting=replace(CELL.setting, mode=mode))


def an_outcome(cell: Cell, seconds: float = 0.1, evictions: int = 0) -> Outcome:
    counters = {"recomputed_victims": evictions, "swapped_victims": 0}
    return Outcome(cell, dict.fromkeys([*QUANTILES, "mean"], seconds), counters)


def test_a_file_holds_what_was_simulated(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    first, second = an_outcome(CELL, 1 / 3), an_outcome(replace(CELL, seed=2), 0.2)
    KeptOutcomes(path).add(first)
    KeptOutcomes(path).add(second)
    kept = KeptOutcomes(path)
    assert kept.get(first.cell) == first
    assert kept.get(second.cell) == second
    assert kept.get(replace(CELL, memory=0.5)) is None
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


def test_without_evictions_all_modes_of_preemption_are_one_run() -> None:
    kept = KeptOutcomes(None)
    kept.add(an_outcome(CELL))
    assert kept.get(in_mode(Mode.SWAP)) == an_outcome(in_mode(Mode.SWAP))
    kept.add(an_outcome(CELL, evictions=1))
    assert kept.get(in_mode(Mode.SWAP)) is None
    assert kept.get(CELL) == an_outcome(CELL, evictions=1)


def test_what_is_kept_is_not_simulated_again(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    kept, plan = KeptOutcomes(path), cells("srpf", [1, 2], arrivals=[Arrivals.POISSON])
    for cell in plan:
        if cell.setting.mode is Mode.COST:
            kept.add(an_outcome(cell))
    path.chmod(0o400)
    found = outcomes(plan, Namespace(processes=1, state=path))
    assert found == [an_outcome(cell) for cell in plan]


@pytest.mark.parametrize(
    ("ours_s", "worse"),
    [([1.0, 1.01, 0.99], []), ([1.05, 1.06, 1.04], ["p50", "p95", "p99"])],
)
def test_worse_is_what_chance_does_not_explain(ours_s: list[float], worse: list[str]) -> None:
    found = [
        an_outcome(replace(CELL, system=system, seed=seed), seconds)
        for seed, our_s in enumerate(ours_s)
        for system, seconds in (("fcfs", 1.0), ("lcas", 1.2), ("mcps", 1.3), ("srpf", our_s))
    ]
    compared = results(found, "srpf")
    assert {each.best for each in compared} == {"fcfs"}
    assert [each.quantile for each in misses(compared)] == worse
    assert compared[0].excess_s == interval(ours_s, [1.0] * 3)
    # P99.9 may be a tenth above.
    assert compared[-1].excess_s == interval(ours_s, [1.1] * 3)
