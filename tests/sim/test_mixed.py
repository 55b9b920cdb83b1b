"""Mixed workers simulated: their own planner, answers in the same steps as prefill, no KV that crosses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

import pytest

from cost_profiles.decision import Mode
from experiments.paper.h200 import load_fit
from experiments.paper.h200 import profile as h200_profile
from prefill_worker.policy import POLICIES
from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.settings.worker_options import PrefillOptions, WorkerOptions
from stream2llm.simulator.play_trace import Machine, Way, play_trace
from stream2llm.simulator.prefill import PrefillWorker
from stream2llm.simulator.prefill_settings import PrefillSettings
from stream2llm.simulator.work import Change, Task
from stream2llm.workload.records import RunRecord
from stream2llm.workload.traces.format import Shape
from tests.builders import FrozenCosts, LinearCosts
from tests.sim.test_simulator import workload

COSTS = LinearCosts(token_s=0.001, block_s=0.01)
NUM_ANSWER = 16
PAIR = Machine(h200_profile(load_fit(), 2048), kv_gib=40.0, num_prefill=0, num_mixed=2)


def played(
    asked: Sequence[Task],
    machine: Machine = PAIR,
    target_ms: int | None = None,
    **prefill: object,
) -> RunRecord:
    options = WorkerOptions(
        prefill=PrefillOptions.model_validate({"offload_pool_gib": 100.0, **prefill}),
        inter_token_target_ms=target_ms,
    )
    return play_trace(machine, Way(options, num_output_tokens=NUM_ANSWER), asked, "t")


def gaps_s(run: RunRecord) -> list[float]:
    return [late - soon for each in run.sessions for soon, late in pairwise(each.token_times_s)]


def check_whole(run: RunRecord, asked: Sequence[Task]) -> None:
    assert {each.session_id for each in run.sessions} == {each.name for each in asked}
    assert all(len(each.token_times_s) == NUM_ANSWER for each in run.sessions)
    assert all(gap > 0 for gap in gaps_s(run))
    assert run.samples[-1].kv_usage == 0


# -- one worker, step by step -------------------------------------------------------------


def a_worker(steps: list[list[tuple[int, int]]], target_ms: int | None = None) -> PrefillWorker:
    """Keeps the ranges that its steps compute; a step takes a millisecond a token."""

    def step_s(ranges: Sequence[tuple[int, int]]) -> float:
        steps.append(sorted(ranges))
        return sum(stop - start for start, stop in ranges) * COSTS.token_s

    settings = PrefillSettings(
        num_blocks=64, block_size=4, token_budget=100, inter_token_target_ms=target_ms
    )
    return PrefillWorker(settings, step_s, COSTS, FrozenCosts(COSTS))


def run_step(worker: PrefillWorker) -> list[str]:
    result = worker.begin_step()
    assert result is not None
    return worker.end_step(result)


def test_a_step_computes_the_last_token_of_an_answer_beside_prefill() -> None:
    steps: list[list[tuple[int, int]]] = []
    worker = a_worker(steps)
    worker.change("a", Change(0.0, 0, 10, seals=True), num_to_sample=3)
    assert run_step(worker) == []
    worker.change("b", Change(0.0, 0, 50, seals=True), num_to_sample=1)
    assert run_step(worker) == ["b"]
    assert run_step(worker) == ["a"]
    assert steps == [[(0, 10)], [(0, 50), (10, 11)], [(11, 12)]]
    assert worker.counters.computed_tokens == 60, "tokens of answers are no prompt's"
    for name in ("a", "b"):
        worker.release(name)
    assert worker.kv_usage == 0
    assert worker.begin_step() is None


def test_prefill_beside_an_answer_is_cut_to_the_target() -> None:
    steps: list[list[tuple[int, int]]] = []
    worker = a_worker(steps, target_ms=20)
    worker.change("a", Change(0.0, 0, 10, seals=True), num_to_sample=9)
    run_step(worker)
    run_step(worker)  # an answer alone takes a millisecond
    worker.change("b", Change(0.0, 0, 50, seals=True))
    for _ in range(3):
        run_step(worker)
    assert [step[0] for step in steps[2:]] == [(0, 19), (12, 13), (13, 14)]
    assert [step[-1] for step in steps[3:]] == [(19, 38), (38, 50)]


# -- whole clusters -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_answer_is_whole_under_pressure(policy: str, mode: Mode) -> None:
    """KV for a fifth of what is open at once, so that answers lose theirs, too."""
    asked = workload("anns", count=60, gaps=20)
    run = played(asked, replace(PAIR, kv_gib=20.0), policy=policy, preemption=mode)
    check_whole(run, asked)
    assert run.counters["recomputed_victims"] + run.counters["swapped_victims"] > 0
    for record, task in zip(
        run.sessions, sorted(asked, key=lambda each: (each.opened_s, each.name)), strict=True
    ):
        assert record.computed_tokens - record.recomputed_tokens >= task.num_tokens


def test_an_inter_token_target_is_kept_but_for_a_little_prefill() -> None:
    asked = workload("crawler", rate=12.0)
    free, bounded = played(asked), played(asked, target_ms=30)
    for run in (free, bounded):
        check_whole(run, asked)
    assert max(gaps_s(free)) > 0.060
    assert max(gaps_s(bounded)) < 0.045


@pytest.mark.parametrize("shape", ["crawler", "anns"])
def test_a_mixed_pair_prefills_on_both_and_waits_for_no_kv(shape: Shape) -> None:
    """At a load that keeps one prefill worker busy most of the time."""
    asked = workload(shape, rate=9.0)
    mixed = played(asked)
    apart = played(asked, replace(PAIR, num_prefill=1, num_decode=1, num_mixed=0))
    first = [
        [each.ttft_s for each in run.sessions if each.ttft_s is not None] for run in (mixed, apart)
    ]
    assert median(first[0]) < median(first[1])
    assert median(gaps_s(mixed)) > median(gaps_s(apart)), "steps with prefill hold answers up"
    assert not any(name.startswith("handover") for name in mixed.counters)


def test_both_kinds_share_the_sessions() -> None:
    asked = workload("crawler", rate=8.0)
    run = played(asked, replace(PAIR, num_prefill=1, num_decode=1, num_mixed=1))
    check_whole(run, asked)
    crossed = run.counters["handover_used_tokens"] + run.counters["handover_after_seal_tokens"]
    assert 0.2 < crossed / sum(each.num_tokens for each in asked) < 0.8


def test_an_answer_that_does_not_fit_beside_its_context_is_refused() -> None:
    (asked,) = workload("crawler", count=1)
    machine = replace(PAIR, kv_gib=1.0)
    room = machine.num_blocks(1.0) * machine.profile.block_size
    longer = replace(asked, num_output_tokens=room)
    with pytest.raises(InvalidRequestError, match=r"context and answer.* mixed worker"):
        played([longer], machine)
