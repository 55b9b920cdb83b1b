"""A cost profile of the engine at hand, in seconds rather than minutes.

What `stream2llm profile` measures, with its meters, on an engine that is there
already, and with whatever link to the host it has at the moment.
"""

from __future__ import annotations

from pathlib import Path

from cost_profiles.types import CostProfile
from prefill_worker.local_engine import LocalEngine
from prefill_worker.profile_budget import Budget, Progress
from prefill_worker.profile_recompute import RecomputeMeter, RecomputeTimes
from prefill_worker.profile_swap import SwapMeter, SwapTimes
from prefill_worker.profiling import ProfileWriter, Subject, plan_for
from stream2llm.serving.system.clock import SystemClock


def measure_recompute(engine: LocalEngine, seconds: float) -> RecomputeTimes:
    """Full steps and shorter ones, of a session alone in the engine."""
    return RecomputeMeter(engine, plan_for(engine)).measure(_budget(seconds))


def measure_swap(engine: LocalEngine, seconds: float) -> SwapTimes:
    """Copies out and back, over the link that the engine has now."""
    return SwapMeter(engine).measure(_budget(seconds))


def profile_of(engine: LocalEngine, recompute: RecomputeTimes, swap: SwapTimes) -> CostProfile:
    subject = Subject(Path(engine.config.model_config.model), {}, {}, "one benchmark run")
    return ProfileWriter(engine, subject, SystemClock()).profile(plan_for(engine), recompute, swap)


def _budget(seconds: float) -> Budget:
    clock = SystemClock()
    ends_s = clock.monotonic_s() + seconds
    return Budget(clock, ends_s, Progress(lambda _line: None, clock, ends_s))
