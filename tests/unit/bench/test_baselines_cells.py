"""Which systems run in which cell, in which order, and how dense their traces are."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.baselines.cells import (
    BURSTS,
    COMPARISONS,
    DISAGGREGATED,
    DISAGGREGATED_WARMED,
    HEAVY,
    LOADS,
    NON_STREAMING,
    SHAPES,
    STREAMED,
    WARMED,
    Cell,
    Load,
    Options,
    Turn,
    cells_of,
    is_mixed,
    mixed,
    ours,
    phases,
    policy_of,
    preemption_of,
    reported_policy,
    systems_of,
    turns,
)
from experiments.baselines.cluster_host import (
    ClusterHostSpec,
    cluster_config,
    spec_of,
)
from experiments.baselines.cluster_host import (
    Shape as ClusterShape,
)
from experiments.baselines.command import add_options, options_of
from experiments.baselines.engines.messages import HostSpec
from experiments.baselines.scaling import Pace, at_paper_speed
from experiments.baselines.schedule import sessions_of
from prefill_worker.policy import POLICIES
from stream2llm.api.errors import InvalidRequestError
from stream2llm.workload.traces.format import Shape

POLICY_NAMES = ("default", "fcfs")


def test_vllms_streaming_takes_part_where_contexts_are_appended_only() -> None:
    crawler, anns = (Cell("engine", shape, HEAVY) for shape in SHAPES)
    assert STREAMED in systems_of(crawler, POLICY_NAMES)
    assert STREAMED not in systems_of(anns, POLICY_NAMES)
    assert STREAMED in systems_of(Cell("whole", "crawler", HEAVY), POLICY_NAMES)


def test_whole_systems_meet_at_heavy_load_only() -> None:
    for comparison in ("whole", "mixed"):
        assert [cell.load for cell in cells_of(comparison, "anns")] == [HEAVY]
    assert [cell.load for cell in cells_of("engine", "anns")] == list(LOADS)


def test_phases_cover_the_loads_and_only_pressure_is_scarce() -> None:
    found = {cell.load.name: scarce for scarce, cells in phases("crawler") for cell in cells}
    assert found == {"light": False, "heavy": False, "bursts": False, "pressure": True}


def test_the_rate_is_measured_even_where_only_pressure_is_wanted() -> None:
    (is_scarce, cells), (is_scarce_too, pressure) = phases("anns", ["pressure"])
    assert (is_scarce, cells) == (False, ())
    assert (is_scarce_too, [cell.load.name for cell in pressure]) == (True, ["pressure"])
    assert phases("anns", ["heavy"]) == ((False, cells_of("engine", "anns", ["heavy"])),)


def test_every_system_runs_once_in_each_repetition_of_each_cell() -> None:
    cells = cells_of("engine", "crawler")
    plan = list(turns(cells, POLICY_NAMES, 3))
    # Under pressure two more: each mode of preemption but the default one.
    assert len(plan) == len(set(plan)) == 3 * (3 * 5 + 7)
    assert set(Counter((turn.cell, turn.system) for turn in plan).values()) == {3}


def test_systems_of_a_cell_run_one_after_the_other_and_take_turns_in_being_first() -> None:
    plan = list(turns(cells_of("whole", "crawler"), POLICY_NAMES, 2))
    first, second = plan[: len(plan) // 2], plan[len(plan) // 2 :]
    assert {turn.repetition for turn in first} == {1}
    assert {turn.system for turn in first} == {turn.system for turn in second}
    assert first[0].system != second[0].system


def test_the_name_of_a_system_of_ours_tells_its_policy() -> None:
    assert policy_of(ours("lcas")) == "lcas"
    assert policy_of(NON_STREAMING) is None
    by_mode = ours("lcas", "swap")
    assert (policy_of(by_mode), preemption_of(by_mode)) == ("lcas", "swap")
    assert preemption_of(ours("lcas")) == "cost"


def test_a_pair_of_stock_engines_and_a_mixed_cluster_are_whole_systems() -> None:
    by_mixed = mixed("fcfs")
    pairs = {DISAGGREGATED, DISAGGREGATED_WARMED}
    of_engines, of_whole, at_both_cores = (
        set(systems_of(Cell(comparison, "anns", HEAVY), POLICY_NAMES)) for comparison in COMPARISONS
    )
    assert not of_engines & {*pairs, by_mixed}
    assert of_whole > {*pairs, by_mixed, ours("fcfs")}
    # One core that prefills cannot take what two can.
    assert at_both_cores == {NON_STREAMING, WARMED, by_mixed}


def test_a_mixed_cluster_has_the_policy_of_its_name() -> None:
    name = mixed("lcas")
    assert (policy_of(name), preemption_of(name), is_mixed(name)) == ("lcas", "cost", True)
    assert not is_mixed(ours("lcas"))
    assert not is_mixed(DISAGGREGATED)


@pytest.mark.parametrize("shape", ["apart", "mixed"])
def test_both_clusters_have_two_workers_with_a_core_each(
    shape: ClusterShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.lab_cluster.ensure_random_llama", lambda _: tmp_path)
    engine = HostSpec("stock", "", (0,), 401, 32, 512, 256, 8192)
    spec = ClusterHostSpec(shape, "shallow", engine, (4, 7))
    assert spec_of(json.dumps(asdict(spec))) == spec
    config = cluster_config(spec)
    found = {role: (each.replicas, each.cpu_bind) for role, each in config.worker_sections}
    apart = {"prefill": (1, "4"), "decode": (1, "7")}
    assert found == (apart if shape == "apart" else {"mixed": (2, "4;7")})
    for _, section in config.worker_sections:
        assert section.engine["max_num_batched_tokens"] == 512


def test_bursts_have_as_many_sessions_and_more_of_them_at_once() -> None:
    def most_at_once(load: Load) -> int:
        """Most sessions that arrive in the time of ten mean prefills."""
        pace, turn = at_paper_speed("crawler"), Turn(Cell("engine", "crawler", load), "", 1)
        due_s = [each.due_s for each in sessions_of(turn, pace, 100, 1.0)]
        assert len(due_s) == 100
        return max(sum(0 <= at - begin < 10 * pace.prefill_s for at in due_s) for begin in due_s)

    assert most_at_once(BURSTS) > 2 * most_at_once(HEAVY)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_papers_speed_times_are_the_published_ones(shape: Shape) -> None:
    assert at_paper_speed(shape).time_scale == pytest.approx(1.0)


def test_a_slower_engine_gets_longer_times_and_fewer_sessions_for_the_same_load() -> None:
    fast, slow = Pace("crawler", 40_000.0), Pace("crawler", 20_000.0)
    assert slow.time_scale == pytest.approx(2 * fast.time_scale)
    assert slow.rate(0.8) == pytest.approx(fast.rate(0.8) / 2)


def test_a_load_is_the_share_of_time_in_which_the_engine_computes() -> None:
    pace = Pace("anns", 30_000.0)
    assert pace.rate(0.3) * pace.prefill_s == pytest.approx(0.3)


def parse(arguments: Sequence[str]) -> Options:
    parser = ArgumentParser()
    add_options(parser)
    return options_of(parser.parse_args(arguments))


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines in this process, started by other tests, keep to one."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})


@pytest.mark.usefixtures("two_cores")
def test_all_policies_of_the_scheduler_take_part_by_default() -> None:
    options = parse([])
    assert options.policies == tuple(POLICIES)
    assert (options.num_sessions, options.repetitions) == (134, 3)


@pytest.mark.usefixtures("two_cores")
def test_only_chooses_comparisons_and_shapes() -> None:
    options = parse(["--quick", "--only", "engine", "anns", "--output", "there"])
    assert options.comparisons == ("engine",)
    assert options.shapes == ("anns",)
    assert options.output == Path("there")
    assert options.retrieval_factor < 1


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("only", [["whole", "light"], ["whole", "anns", "pressure"]])
def test_what_would_run_nothing_is_refused(only: list[str]) -> None:
    with pytest.raises(InvalidRequestError, match="compared at heavy load"):
        parse(["--only", *only])


def test_reports_compare_the_default_policy_or_the_last_one_that_ran() -> None:
    assert reported_policy(("default", "srpf", "fcfs")) == "srpf"
    assert reported_policy(("default", "fcfs")) == "fcfs"
