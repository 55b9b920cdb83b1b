"""The rounds of a swap measurement, through a connector whose copies take as long as we say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from prefill_worker.profile_budget import Budget, Progress
from prefill_worker.profile_swap import MAX_ROUNDS, SwapMeter
from prefill_worker.swap_connector import SwapConnector, SwapWorkerMeta
from prefill_worker.swap_jobs import CopyJob, CopyTime, Direction, JobResults
from stream2llm.api.errors import InternalError, InvalidRequestError
from stream2llm.serving.system.clock import ManualClock

pytestmark = pytest.mark.unit

SECONDS = {Direction.OUT: 0.002, Direction.IN: 0.001}


class ScriptedConnector(SwapConnector):
    """Keeps its jobs; what vLLM would build is not there."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.jobs: list[CopyJob] = []

    def start(self, job: CopyJob) -> None:
        self.jobs.append(job)


class ScriptedEngine:
    """Copies one job a step, by the block."""

    def __init__(self, num_blocks: int, num_slots: int, clock: ManualClock, slow: float) -> None:
        self.connector = ScriptedConnector(num_slots)
        self.scheduler = SimpleNamespace(connector=self.connector, schedule=lambda: None)
        self.config = SimpleNamespace(cache_config=SimpleNamespace(num_gpu_blocks=num_blocks))
        self.fails = False
        self._clock = clock
        self._slow = slow

    def execute(self, _step: None) -> Any:
        job = self.connector.jobs[-1]
        seconds = self._slow * SECONDS[job.direction] * len(job.block_ids)
        self._clock.advance(seconds)
        failures = {job.number: "no memory"} if self.fails else {}
        times = {job.number: CopyTime(job.direction, len(job.block_ids), seconds)}
        results = JobResults({job.number: 1}, failures, {} if self.fails else times)
        meta = SwapWorkerMeta(results)
        return SimpleNamespace(kv_connector_output=SimpleNamespace(kv_connector_worker_meta=meta))


def a_meter(
    budget_s: float = 1000, num_slots: int = 50, slow: float = 1.0
) -> tuple[SwapMeter, Budget, ScriptedEngine]:
    clock = ManualClock(monotonic_s=0.0)
    engine = ScriptedEngine(101, num_slots, clock, slow)
    budget = Budget(clock, budget_s, Progress(lambda _: None, clock, budget_s))
    return SwapMeter(engine), budget, engine  # type: ignore[arg-type]


def test_every_size_is_copied_both_ways_and_the_reported_seconds_count() -> None:
    meter, budget, _ = a_meter()
    times = meter.measure(budget)
    sizes = (1, 2, 4, 8, 16)  # a quarter of 100 blocks
    assert times.out.medians() == pytest.approx({size: size * 0.002 for size in sizes})
    assert times.back.medians() == pytest.approx({size: size * 0.001 for size in sizes})
    assert times.out.num_rounds == times.back.num_rounds == (MAX_ROUNDS, MAX_ROUNDS)


def test_jobs_stay_inside_the_memory_and_read_only_what_was_written() -> None:
    meter, budget, engine = a_meter()
    meter.measure(budget)
    written: set[int] = set()
    for job in engine.connector.jobs:
        assert len(job.block_ids) == len(set(job.block_ids)) == len(set(job.slots))
        assert 1 <= min(job.block_ids) <= max(job.block_ids) <= 100  # 0 is the null block
        assert 0 <= min(job.slots) <= max(job.slots) < 50
        if job.direction is Direction.OUT:
            written |= set(job.slots)
        else:
            assert set(job.slots) <= written


def test_a_small_pool_bounds_the_copies() -> None:
    meter, budget, engine = a_meter(num_slots=9)
    times = meter.measure(budget)
    assert max(times.out.medians()) == 8
    assert max(max(job.slots) for job in engine.connector.jobs) < 9


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at most 0 blocks"):
        a_meter(num_slots=0)


def test_it_ends_in_time_with_the_rounds_that_fitted() -> None:
    # The warm-up takes 8 s, a round 9.3 s.
    meter, budget, _ = a_meter(budget_s=35, slow=100)
    times = meter.measure(budget)
    assert times.out.num_rounds == (2, 2)
    assert budget.left_s >= 0


def test_too_little_time_for_a_round_is_an_error() -> None:
    meter, budget, _ = a_meter(budget_s=2, slow=100)
    with pytest.raises(InvalidRequestError, match="host memory") as raised:
        meter.measure(budget)
    assert raised.value.field == "--minutes"


def test_a_copy_that_fails_is_not_passed_over() -> None:
    meter, budget, engine = a_meter()
    engine.fails = True
    with pytest.raises(InternalError, match=r"copying 16 blocks failed: .*no memory"):
        meter.measure(budget)
