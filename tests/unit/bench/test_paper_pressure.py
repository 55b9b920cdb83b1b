"""The paper's preemptions: what is published, how ours are fitted, its recordings, and outcomes in a file."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from cost_profiles.decision import Mode
from experiments.paired import interval
from experiments.paper.grid import outcomes
from experiments.paper.kept import KeptOutcomes, Outcome
from experiments.paper.policies import Arrivals, cells, misses, results, settings_of
from experiments.paper.pressed import FITTED, settings
from experiments.paper.published import (
    POLICIES,
    QUANTILES,
    Preemptions,
    Setting,
    published_arrivals_s,
    published_invalidations,
    published_preemptions,
)
from experiments.paper.published import settings as published_settings
from experiments.paper.recordings import arriving, recorded
from experiments.paper.runs import Cell
from stream2llm.workload.traces.imports import Importing


def test_preemptions_are_published_for_each_policy_in_each_pressed_setting() -> None:
    found = published_preemptions()
    policies = ("default", *POLICIES)
    assert set(found) == {(setting, policy) for setting in settings() for policy in policies}
    fcfs = found[FITTED["crawler"]]
    assert (fcfs.total, round(fcfs.swapped_share, 3)) == (1575, 0.213)
    assert Preemptions(0, 0, 0, 0).swapped_share == 0
    assert len(published_invalidations()) == 4 * len(POLICIES)


def test_the_published_arrivals_are_those_of_the_artifact_s_files() -> None:
    """The first delays of poisson_delays_0_5.txt and poisson_delays_0_25.txt, to six digits."""
    assert published_arrivals_s(2.0, 3) == pytest.approx([0.234634, 1.739695, 2.398068], abs=2e-6)
    assert published_arrivals_s(4.0, 2) == pytest.approx([0.117317, 0.869847], abs=2e-6)


def test_beside_each_setting_stands_the_same_with_bursts() -> None:
    both = settings_of(tuple(Arrivals))
    assert len(both) == 2 * len(published_settings())
    assert [each.bursts for each in both[:2]] == [False, True]
    assert both[0].rate == both[1].rate


def test_recordings_are_read_as_the_artifact_keeps_them(tmp_path: Path) -> None:
    crawls = tmp_path / "crawl" / "traces" / "simpleQA_ALL"
    crawls.mkdir(parents=True)
    with (crawls / "query_0.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("type", "query", "content", "endTime"),
                ("tavily_search", "Who?", "", "1"),
                ("page_scrape", "", "one page", "3"),
            ]
        )
    searches = tmp_path / "anns"
    (searches / "res").mkdir(parents=True)
    query = {"query": "Why?", "trace_file": "t.csv"}
    (searches / "query_trace_map_5k.json").write_text(json.dumps({"0": query}))
    (searches / "retrieved_corpus_content.part.0.json").write_text(json.dumps({"1": "a", "2": "b"}))
    (searches / "res" / "t.csv").write_text(
        'StartTime_us,EndTime_us,PipelinePool\n0,1000000,"(1,2)"\n1000000,1500000,"(2,1)"\n'
    )
    importing = Importing(tokens_only=True, delay_factor=10.0)
    (crawl,) = recorded(tmp_path, "crawler", importing)
    (search,) = recorded(tmp_path, "anns", importing)
    assert [crawl.sealed_s, search.sealed_s] == [21.0, 15.0]
    (later,) = arriving([search], 2.0)
    assert later.opened_s == pytest.approx(0.234634, abs=1e-6)
    assert later.sealed_s - later.opened_s == pytest.approx(15.0)


# -- outcomes of cells in a file: a long run goes on where it was stopped -----------------


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
    ("ours_s", "worse"), [([1.0, 1.01, 0.99], []), ([1.05, 1.06, 1.04], ["p50", "p95", "p99"])]
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


def test_bursts_are_judged_at_p50_p95_and_p99() -> None:
    """P99 may be a tenth above the best; there is no bound on P99.9."""
    bursts = replace(CELL, setting=replace(CELL.setting, bursts=True))

    def misses_at(our_s: float) -> list[str]:
        found = [
            an_outcome(replace(bursts, system=system, seed=seed), seconds + seed / 1000)
            for seed in (1, 2, 3)
            for system, seconds in (("fcfs", 1.0), ("lcas", 1.2), ("mcps", 1.3), ("srpf", our_s))
        ]
        return [each.quantile for each in misses(results(found, "srpf"))]

    assert misses_at(0.9) == []
    assert misses_at(1.05) == ["p50", "p95"]
    assert misses_at(1.5) == ["p50", "p95", "p99"]
