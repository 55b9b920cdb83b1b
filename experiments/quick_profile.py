"""A cost profile of the engine at hand, in seconds rather than minutes.

What `stream2llm profile` measures, with its meters, on an engine that is there
already, and with whatever link to the host it has at the moment.
"""

from __future__ import annotations

from datetime import datetime

from cost_profiles.types import (
    NOTHING_RAN,
    SCHEMA_VERSION,
    UNITS,
    Accelerator,
    CostProfile,
    Kind,
    Provenance,
    RecomputeSection,
    SwapSection,
)
from prefill_worker.costs import node_of
from prefill_worker.local_engine import LocalEngine
from prefill_worker.profile_budget import Budget, Progress
from prefill_worker.profile_plan import Samples, recompute_points, swap_points
from prefill_worker.profile_recompute import RecomputeMeter, RecomputeTimes
from prefill_worker.profile_swap import SwapMeter
from prefill_worker.profiling import device_name, plan_for
from stream2llm.serving.system.clock import SystemClock


def measure_recompute(engine: LocalEngine, seconds: float) -> RecomputeSection:
    """Full steps and shorter ones, of a session alone in the engine."""
    plan = plan_for(engine)
    times: RecomputeTimes = RecomputeMeter(engine, plan).measure(_budget(seconds))
    points = recompute_points(
        times.from_nothing.medians(), times.behind.medians(), plan.token_budget
    )
    return RecomputeSection(_provenance(), plan.token_budget, points)


def measure_swap(engine: LocalEngine, seconds: float) -> tuple[SwapSection, SwapSection]:
    """Copies out and back, over the link that the engine has now."""
    times = SwapMeter(engine).measure(_budget(seconds))
    return _section(times.out), _section(times.back)


def profile_of(
    engine: LocalEngine, recompute: RecomputeSection, swap: tuple[SwapSection, SwapSection]
) -> CostProfile:
    """The whole of it."""
    node = node_of(engine.config, device_name())
    return CostProfile(
        schema_version=SCHEMA_VERSION,
        units=UNITS,
        accelerator=Accelerator(node.device_name, ()),
        model=node.shape.geometry,
        tensor_parallel_size=1,
        block_size=node.block_size,
        versions=NOTHING_RAN,
        recompute=recompute,
        swap_out=swap[0],
        swap_in=swap[1],
    )


def _budget(seconds: float) -> Budget:
    clock = SystemClock()
    ends_s = clock.monotonic_s() + seconds
    return Budget(clock, ends_s, Progress(_nothing, clock, ends_s))


def _nothing(_line: str) -> None:
    pass


def _section(samples: Samples) -> SwapSection:
    return SwapSection(_provenance(), swap_points(samples.medians()))


def _provenance() -> Provenance:
    when = datetime.fromtimestamp(SystemClock().wall_s()).date().isoformat()
    return Provenance(Kind.MEASURED, when, "bench", "this machine", (), "for one benchmark run")
