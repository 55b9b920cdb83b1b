"""The rounds of a recompute measurement, on an engine whose steps take as long as we say."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from prefill_worker.profile_budget import Budget, Progress
from prefill_worker.profile_plan import recompute_plan
from prefill_worker.profile_recompute import MAX_ROUNDS, RecomputeMeter, RecomputeTimes
from prefill_worker.session_state import ContextEvent
from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.system.clock import ManualClock

pytestmark = pytest.mark.unit

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
