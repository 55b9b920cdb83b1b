"""The simulator: deterministic, conserves tokens and blocks, and shows what it is for."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from cost_profiles.decision import Mode
from experiments.paper.grid import comparisons, orders, outcome, table, verdict
from experiments.paper.h200 import load_fit
from experiments.paper.h200 import profile as h200_profile
from experiments.paper.policies import gains_line, highest_loads, misses, results
from experiments.paper.published import NOT_STREAMED, QUANTILES, Setting
from experiments.paper.runs import Cell
from prefill_worker.policy import POLICIES
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.handover import HANDOVER_MODES, HandoverMode
from stream2llm.serving.settings.worker_options import (
    DEFAULT_POLICY,
    HandoverOptions,
    PrefillOptions,
    WorkerOptions,
)
from stream2llm.simulator.play_trace import Machine, Way, play_trace
from stream2llm.simulator.work import Task, invalidated_tokens, tasks
from stream2llm.workload.records import RunRecord
from stream2llm.workload.traces.arrivals import Poisson, first
from stream2llm.workload.traces.format import Scale, Shape
from stream2llm.workload.traces.generate import generate
from tests.example_policy import install_example

MACHINE = Machine(h200_profile(load_fit(), 2048), kv_gib=40.0)


def options(
    policy: str = DEFAULT_POLICY, handover: HandoverMode = "at_seal", **prefill: Any
) -> WorkerOptions:
    return WorkerOptions(
        prefill=PrefillOptions(policy=policy, **{"offload_pool_gib": 100.0, **prefill}),
        handover=HandoverOptions(mode=handover),
    )


def workload(shape: Shape, count: int = 120, rate: float = 4.0, gaps: float = 1.0) -> list[Task]:
    arrivals = first(count, Poisson().arrivals(rate, random.Random("arrivals")), "poisson")
    return tasks(each.with_gaps(gaps) for each in generate(shape, arrivals, 3, Scale()))


def ttft_s(run: RunRecord) -> list[float]:
    return [each.ttft_s for each in run.sessions if each.ttft_s is not None]


def test_equal_inputs_give_equal_runs() -> None:
    asked = workload("anns")
    runs = [play_trace(MACHINE, Way(options("srpf")), asked, "t") for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_policy_by_import_path_is_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest first leaves the first of a burst waiting: longer than under fcfs at P99."""
    module = install_example(tmp_path, monkeypatch)
    asked = workload("anns", rate=20.0)
    own, fcfs = (
        play_trace(MACHINE, Way(options(policy)), asked, "t")
        for policy in (f"{module}:lifo", "fcfs")
    )
    assert len(ttft_s(own)) == len(ttft_s(fcfs)) == len(asked)
    assert max(ttft_s(own)) > max(ttft_s(fcfs))
    with pytest.raises(InvalidRequestError, match=r"policy: .*example:nothing cannot be imported"):
        play_trace(MACHINE, Way(options(f"{module}:nothing")), asked, "t")


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_session_is_answered_and_no_token_is_lost(policy: str, mode: Mode) -> None:
    """KV for a fifth of what is open at once, so that much is evicted."""
    asked = workload("anns", gaps=20)
    machine = replace(MACHINE, kv_gib=20.0, num_prefill=2)
    run = play_trace(machine, Way(options(policy, preemption=mode)), asked, "t")
    assert {each.session_id for each in run.sessions} == {each.name for each in asked}
    by_name = {each.name: each for each in asked}
    for record in run.sessions:
        task = by_name[record.session_id]
        assert record.num_prompt_tokens == task.num_tokens
        assert record.invalidated_tokens <= invalidated_tokens(task) + machine.profile.block_size
        assert record.computed_tokens - record.recomputed_tokens >= task.num_tokens
    victims = run.counters["recomputed_victims"] + run.counters["swapped_victims"]
    assert victims > 0
    assert run.samples[-1].kv_usage == 0


def test_streaming_hides_prefill_behind_the_crawl() -> None:
    asked = workload("crawler")
    streamed = play_trace(MACHINE, Way(options("srpf")), asked, "t")
    non_streaming = play_trace(MACHINE, Way(options("default"), streams=False), asked, "t")
    assert median(ttft_s(non_streaming)) > 3 * median(ttft_s(streamed))
    assert sum(each.computed_tokens for each in streamed.sessions) == sum(
        each.computed_tokens for each in non_streaming.sessions
    )


def test_a_second_prefill_worker_takes_half_of_the_sessions() -> None:
    asked = workload("crawler", rate=8.0)
    one, two = (
        play_trace(replace(MACHINE, num_prefill=count), Way(options("fcfs")), asked, "t")
        for count in (1, 2)
    )
    assert median(ttft_s(two)) < median(ttft_s(one))


def test_steps_for_open_sessions_alone_are_as_short_as_they_are_told() -> None:
    """What an update replaces is further from being computed; fcfs knows no such steps."""
    asked = workload("anns", rate=2.0)
    runs = {
        (policy, target_ms): play_trace(
            MACHINE, Way(options(policy, open_step_target_ms=target_ms)), asked, "t"
        )
        for policy in ("srpf", "fcfs")
        for target_ms in (8, 160)
    }
    invalidated = {key: run.counters["invalidated_tokens"] for key, run in runs.items()}
    assert invalidated["srpf", 8] < invalidated["srpf", 160]
    assert runs["fcfs", 8] == runs["fcfs", 160]


def test_answers_are_decoded_after_their_kv_has_crossed() -> None:
    asked = workload("crawler", count=40)
    slow, fast = (
        play_trace(
            replace(MACHINE, num_decode=1, network_gbit_s=gbit),
            Way(options("fcfs"), num_output_tokens=8),
            asked,
            "t",
        )
        for gbit in (10.0, 400.0)
    )
    for run in (slow, fast):
        assert all(len(each.token_times_s) == 8 for each in run.sessions)
        assert all(list(each.token_times_s) == sorted(each.token_times_s) for each in run.sessions)
    waits = [
        median(each.token_times_s[1] - each.token_times_s[0] for each in run.sessions)
        for run in (slow, fast)
    ]
    assert waits[0] > 5 * waits[1]


@pytest.mark.parametrize("mode", HANDOVER_MODES)
def test_recorded_answers_are_as_long_as_they_were(mode: HandoverMode) -> None:
    """Also those of one token, which need no decode worker."""
    asked = [
        replace(each, num_output_tokens=(1, 5, None)[number % 3])
        for number, each in enumerate(workload("crawler", count=30))
    ]
    way = Way(options("fcfs", mode), num_output_tokens=3)
    run = play_trace(replace(MACHINE, num_decode=1), way, asked, "t")
    wanted = {each.name: each.num_output_tokens or 3 for each in asked}
    assert {each.session_id: len(each.token_times_s) for each in run.sessions} == wanted
    assert run.samples[-1].kv_usage == 0


def test_answers_that_nobody_could_decode_are_refused() -> None:
    asked = [replace(each, num_output_tokens=2) for each in workload("crawler", count=1)]
    with pytest.raises(ValueError, match="need a decode worker"):
        play_trace(MACHINE, Way(options("fcfs")), asked, "t")


def test_a_session_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="--kv-gib"):
        play_trace(replace(MACHINE, kv_gib=0.1), Way(options("fcfs")), workload("crawler"), "t")


def test_a_cell_of_the_grid_is_put_beside_the_paper_s_numbers() -> None:
    """How close they are is for `python -m experiments paper` to tell, not for a test."""
    setting = Setting("anns", 0.5, 1.0, Mode.COST)
    found = [outcome(Cell(setting, system)) for system in (NOT_STREAMED, "fcfs", "lcas")]
    compared = comparisons(found)
    by_system = {(each.system, each.quantile): each for each in compared}
    assert len(by_system) == len(compared) == len(found) * len(QUANTILES)
    for one in found:
        ours = [by_system[one.cell.system, name].ours_s for name in QUANTILES]
        assert ours == [one.ttft_s[name] for name in QUANTILES] == sorted(ours)
    told = verdict(compared).splitlines()
    reversed_pairs = [each for each in orders(compared) if not each.is_kept]
    assert len(told) == 3 + len(reversed_pairs)
    assert table(compared).count("\n") == 1 + len(found)


def test_srpf_is_the_best_of_four_under_a_burst() -> None:
    """One seed of the heaviest update load; `python -m experiments policies` has the grid."""
    setting = Setting("anns", 2.0, 1.0, Mode.COST)
    found = [
        outcome(Cell(setting, policy, seed=9, whole_requests=False))
        for policy in ("fcfs", "lcas", "mcps", "srpf")
    ]
    compared = {each.quantile: each for each in results(found, "srpf")}
    assert not misses(list(compared.values()))
    assert compared["p95"].gain > 1.3
    assert highest_loads(list(compared.values())) == [compared["p95"]]
    assert "*" not in gains_line(list(compared.values()))


def exposed_s(run: RunRecord) -> list[float]:
    return [each.token_times_s[1] - each.token_times_s[0] for each in run.sessions]


SLOW_NETWORK = replace(MACHINE, num_decode=1, network_gbit_s=25.0, read_overhead_s=0.004)


def handed_over(asked: list[Task], mode: HandoverMode, machine: Machine) -> RunRecord:
    return play_trace(machine, Way(options("srpf", mode), num_output_tokens=16), asked, "t")


@pytest.mark.parametrize("shape", ["crawler", "anns"])
def test_kv_that_crosses_ahead_is_not_waited_for(shape: Shape) -> None:
    asked = workload(shape, rate=1.0)
    at_seal, streamed = (handed_over(asked, mode, SLOW_NETWORK) for mode in HANDOVER_MODES)
    assert median(exposed_s(at_seal)) > 1.5 * median(exposed_s(streamed))
    counters = streamed.counters
    needed = sum(each.num_tokens for each in asked)
    assert counters["handover_used_tokens"] + counters["handover_after_seal_tokens"] == needed
    assert 0 < counters["handover_used_tokens"] <= counters["handover_prefetched_tokens"]
    assert at_seal.counters["handover_after_seal_tokens"] == needed
    assert streamed.samples[-1].kv_usage == 0
    assert handed_over(asked, "streamed", SLOW_NETWORK) == streamed


def test_offers_neither_stop_a_prefill_worker_short_of_memory_nor_leave_blocks() -> None:
    """KV for a fifth of what is open at once, and a network that is slower than prefill."""
    asked = workload("anns", gaps=20)
    machine = replace(SLOW_NETWORK, kv_gib=20.0, num_prefill=2, num_decode=2, network_gbit_s=5.0)
    run = handed_over(asked, "streamed", machine)
    assert {each.session_id for each in run.sessions} == {each.name for each in asked}
    assert run.counters["handover_refused_fetches"] > 0
    assert run.samples[-1].kv_usage == 0
