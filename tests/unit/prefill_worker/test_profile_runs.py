"""The rounds of measurements of recompute and swap, whose steps and copies take as long as we say."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from prefill_worker.profile_budget import Budget, Progress
from prefill_worker.profile_plan import recompute_plan
from prefill_worker.profile_recompute import MAX_ROUNDS, RecomputeMeter, RecomputeTimes
from prefill_worker.profile_swap import MAX_ROUNDS as MAX_SWAP_ROUNDS
from prefill_worker.profile_swap import SwapMeter
from prefill_worker.session_state import ContextEvent
from prefill_worker.swap_connector import SwapConnector, SwapWorkerMeta
from prefill_worker.swap_jobs import CopyJob, CopyTime, Direction, JobResults
from stream2llm.api.errors import InternalError, InvalidRequestError
from stream2llm.serving.system.clock import ManualClock

# -- recompute ----------------------------------------------------------------------------


STEP = 512


class ScriptedEngine:
    """One session at a time; a step takes `seconds(tokens, context)`."""

    def __init__(self, clock: ManualClock, seconds: Callable[[int, int], float]) -> None:
        self.config = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 1000))
        self.scheduler = SimpleNamespace(counters=SimpleNamespace(computed_tokens=0))
        self.sessions: list[list[int]] = []
        self._clock = clock
        self._seconds = seconds
        self._session = ""
        self._left = self._context = 0

    def add(self, request_id: str, token_ids: list[int], event: ContextEvent) -> None:
        assert not self._session, "the session before it is still there"
        assert event.begins
        assert not event.seal
        self.sessions.append(token_ids)
        # An open session holds its last token back.
        self._session, self._left, self._context = request_id, len(token_ids) - 1, 0

    def step(self) -> list[Any]:
        num_tokens = min(STEP, self._left)
        self._clock.advance(self._seconds(num_tokens, self._context))
        self._left -= num_tokens
        self._context += num_tokens
        self.scheduler.counters.computed_tokens += num_tokens
        return []

    def cancel(self, request_id: str) -> None:
        assert request_id == self._session
        self._session = ""


def measure(
    seconds: Callable[[int, int], float], budget_s: float
) -> tuple[RecomputeTimes, ManualClock, ScriptedEngine]:
    clock = ManualClock(monotonic_s=0.0)
    engine = ScriptedEngine(clock, seconds)
    meter = RecomputeMeter(engine, recompute_plan(STEP, 4000))  # type: ignore[arg-type]
    budget = Budget(clock, budget_s, Progress(lambda _: None, clock, budget_s))
    return meter.measure(budget), clock, engine


def by_size(num_tokens: int, context: int) -> float:
    return num_tokens * 0.001 + context * 0.0001


def test_with_time_enough_every_size_has_five_samples() -> None:
    times, _, engine = measure(by_size, budget_s=1000)
    assert times.from_nothing.medians() == pytest.approx(
        {size: by_size(size, 0) for size in (32, 64, 128, 256, 512)}
    )
    assert times.behind.medians() == pytest.approx(
        {context: by_size(STEP, context) for context in range(STEP, 3584, STEP)}
    )
    assert times.from_nothing.num_rounds == times.behind.num_rounds == (MAX_ROUNDS, MAX_ROUNDS)
    assert len({tuple(tokens) for tokens in engine.sessions}) == len(engine.sessions)


def test_it_ends_in_time_and_keeps_to_where_the_first_round_got() -> None:
    times, clock, _ = measure(by_size, budget_s=9)
    assert clock.monotonic_s() <= 9
    reached = max(times.behind.medians())
    assert STEP <= reached < 3072
    assert times.from_nothing.num_rounds[0] >= 2


def test_one_step_that_takes_almost_all_is_enough() -> None:
    times, clock, _ = measure(lambda tokens, _: 20.0 if tokens == STEP else 0.1, budget_s=100)
    assert clock.monotonic_s() <= 100
    assert len(times.from_nothing.medians()) == 5
    assert not times.behind.medians()


def test_too_little_time_for_one_step_is_an_error() -> None:
    with pytest.raises(InvalidRequestError, match="one step of recompute") as raised:
        measure(lambda tokens, _: 20.0 if tokens == STEP else 0.1, budget_s=30)
    assert raised.value.field == "--minutes"


# -- swap ---------------------------------------------------------------------------------


SECONDS = {Direction.OUT: 0.002, Direction.IN: 0.001}


class SwappingConnector(SwapConnector):
    """Keeps its jobs; what vLLM would build is not there."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.jobs: list[CopyJob] = []

    def start(self, job: CopyJob) -> None:
        self.jobs.append(job)


class SwappingEngine:
    """Copies one job a step, by the block."""

    def __init__(self, num_blocks: int, num_slots: int, clock: ManualClock, slow: float) -> None:
        self.connector = SwappingConnector(num_slots)
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
) -> tuple[SwapMeter, Budget, SwappingEngine]:
    clock = ManualClock(monotonic_s=0.0)
    engine = SwappingEngine(101, num_slots, clock, slow)
    budget = Budget(clock, budget_s, Progress(lambda _: None, clock, budget_s))
    return SwapMeter(engine), budget, engine  # type: ignore[arg-type]


def test_every_size_is_copied_both_ways_and_the_reported_seconds_count() -> None:
    meter, budget, _ = a_meter()
    times = meter.measure(budget)
    sizes = (1, 2, 4, 8, 16)  # a quarter of 100 blocks
    assert times.out.medians() == pytest.approx({size: size * 0.002 for size in sizes})
    assert times.back.medians() == pytest.approx({size: size * 0.001 for size in sizes})
    assert times.out.num_rounds == times.back.num_rounds == (MAX_SWAP_ROUNDS, MAX_SWAP_ROUNDS)


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
    assert meter.measure(budget).out.num_rounds == (2, 2)
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
