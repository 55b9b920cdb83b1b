"""A deadline on its way from a worker's session to the plan: the real scheduler, a fake executor."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from prefill_worker.engine import PrefillSession
from stream2llm.api.sampling import SamplingParameters
from stream2llm.serving.system.clock import SystemClock
from tests.scheduling.engine_settings import EngineSettings, worker_options
from tests.scheduling.session_engine import SessionEngine

SAMPLING = SamplingParameters(max_tokens=1)


class TenSecondsAgo(SystemClock):
    """What it counts from now on has passed already."""

    def monotonic_s(self) -> float:
        return super().monotonic_s() - 10


def a_session(engine: SessionEngine, name: str, slo_ms: int, clock: SystemClock) -> PrefillSession:
    return PrefillSession(engine, name, SAMPLING, ttft_slo_ms=slo_ms, clock=clock)  # type: ignore[arg-type]


async def test_a_lost_deadline_waits_for_the_context_of_one_that_can_be_met() -> None:
    """Steps of 24 tokens: the first goes to the open session, though the other is sealed."""
    engine = SessionEngine(EngineSettings(options=worker_options(policy="srpf")))
    lost = a_session(engine, "lost", 100, TenSecondsAgo())
    due = a_session(engine, "due", 60_000, SystemClock())
    await lost.splice(1, 0, list(range(40)), seal=True, ttft_left_ms=100)
    await due.splice(1, 0, list(range(100, 130)))
    view = engine.scheduler._table.view
    assert (view("due").ttft_slo_ms, view("due").deadline_ms) == (60_000, 0)
    engine.step()
    assert view("lost").is_late
    assert (view("due").num_computed_tokens, view("lost").num_computed_tokens) == (24, 0)
    await due.splice(2, 30, [7], seal=True, ttft_left_ms=60_000)
    left_ms = view("due").deadline_ms - 1000 * SystemClock().monotonic_s()
    assert 0 < left_ms <= 60_000
    engine.run()
    engine.scheduler.check_integrity()
    for session in (lost, due):
        assert session.outputs is not None


async def test_a_complete_prompt_brings_its_deadline_with_it() -> None:
    engine = SessionEngine(EngineSettings(options=worker_options(policy="srpf")))
    lost = a_session(engine, "lost", 5, TenSecondsAgo())
    await lost.splice(1, 0, list(range(10)), seal=True, ttft_left_ms=5)
    assert engine.scheduler._table.view("lost").deadline_ms > 0
    assert engine.scheduler._table.view("lost").is_late is False  # no step has looked yet
    without = a_session(engine, "without", 0, SystemClock())
    await without.splice(1, 0, list(range(50, 80)), seal=True)
    engine.step()
    assert engine.scheduler._table.view("without").num_computed_tokens == 24
    engine.run()
