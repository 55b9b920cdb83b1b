"""Measures the speed of systems, and plays the traces on them in turn.

Each shape has engines of its own (its step budget, its KV memory), which are
started once and live side by side: an idle one computes nothing. Whole systems
come last. Whatever happens, every process that was started is ended.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path

from cost_profiles.decision import Mode
from experiments.baselines.answering import EngineSystem, PairSystem
from experiments.baselines.cells import (
    DISAGGREGATED,
    DISAGGREGATED_WARMED,
    NON_STREAMING,
    REPLICATED,
    Cell,
    Comparison,
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
from experiments.baselines.drive import run_trace
from experiments.baselines.engines.link import EngineLink
from experiments.baselines.machine import TOLERATED_SHARE, MachineWatch
from experiments.baselines.progress import Progress
from experiments.baselines.scaling import Pace
from experiments.baselines.schedule import MAX_MODEL_LEN, burst, sessions_of
from experiments.baselines.starting import WHOLE_MAX_TOKENS, Starter
from experiments.baselines.systems import System
from experiments.token_sessions import longest_tokens
from stream2llm.api.errors import Stream2LLMError
from stream2llm.serving.system.clock import SystemClock
from stream2llm.workload.records import RunRecord
from stream2llm.workload.report import save_run
from stream2llm.workload.report.summary import REQUEST_RATE
from stream2llm.workload.traces.format import Shape

CALIBRATION_SESSIONS = 100
# Short ones, which fit into scarce memory too.
WARM_UP_SESSIONS, WARM_UP_TOKENS = 40, 1500
# A session without an answer for so many mean prefills is given up, but not sooner than that.
GIVEN_UP_AFTER_PREFILLS, LEAST_GIVEN_UP_AFTER_S = 500, 15.0


class Runner:
    """One run of the benchmark."""

    def __init__(self, options: Options, model_path: Path) -> None:
        self._options = options
        self._model_path = model_path
        self._clock = SystemClock()
        self._progress = Progress(options, self._clock)
        self._paces = self._progress.paces
        self._starter = Starter(options, model_path, self._progress.say)
        self.runs: list[RunRecord] = []

    async def run(self) -> None:
        """Everything that was chosen."""
        os.sched_setaffinity(0, {self._options.cores[0]})
        for shape in self._options.shapes:
            if "engine" in self._options.comparisons:
                await self._engines(shape)
        if {"whole", "mixed"} & {*self._options.comparisons} and "heavy" in self._options.loads:
            # Both cores are the systems'; the driver takes what it needs of either.
            os.sched_setaffinity(0, set(self._options.cores))
            await self._whole()

    async def _engines(self, shape: Shape) -> None:
        for scarce, cells in phases(shape, self._options.loads):
            async with self._starter.engines(shape, scarce=scarce) as links:
                systems = self._engine_systems(links)
                first_of_ours = systems[ours(self._options.policies[0])]
                await self._warm_up(shape, (systems[NON_STREAMING], first_of_ours))
                if not scarce:
                    pace = await self._calibrate("engine", shape, systems[NON_STREAMING])
                    self._paces["engine", shape] = pace
                await self._turns(cells, systems, links)

    def _engine_systems(self, links: Mapping[str, EngineLink]) -> dict[str, System]:
        by_mode = [ours(reported_policy(self._options.policies), each) for each in Mode]
        names = (*REPLICATED, *map(ours, self._options.policies), *by_mode)
        found = {name: links.get(_link_of(name)) for name in names}
        return {name: EngineSystem(name, [link]) for name, link in found.items() if link}

    async def _whole(self) -> None:
        options = self._options
        async with AsyncExitStack() as stack:
            systems = await self._whole_systems(stack)
            # Those that a comparison's rate is measured on: the slowest one counts.
            by_mixed = mixed(reported_policy(options.policies))
            rated = {"whole": (NON_STREAMING, ours(options.policies[0])), "mixed": (by_mixed,)}
            for comparison in options.comparisons:
                if comparison == "engine":
                    continue
                for shape in options.shapes:
                    cells = cells_of(comparison, shape, options.loads)
                    names = systems_of(cells[0], options.policies)
                    # One policy of a cluster's is enough.
                    cold = (None, options.policies[0])
                    warmed = [each for each in names if policy_of(each) in cold or is_mixed(each)]
                    await self._warm_up(shape, [systems[name] for name in warmed])
                    found = [
                        await self._calibrate(comparison, shape, systems[name])
                        for name in rated[comparison]
                    ]
                    pace = min(found, key=lambda each: each.tokens_per_s)
                    self._paces[comparison, shape] = pace
                    await self._turns(cells, systems, {})

    async def _whole_systems(self, stack: AsyncExitStack) -> dict[str, System]:
        """Starts what the chosen comparisons need."""
        starter, policies = self._starter, self._options.policies
        replicas = await stack.enter_async_context(starter.replicas())
        found: dict[str, System] = {
            name: EngineSystem(name, replicas, WHOLE_MAX_TOKENS) for name in REPLICATED
        }
        if "whole" in self._options.comparisons:
            pair = await stack.enter_async_context(starter.pair())
            for name in (DISAGGREGATED, DISAGGREGATED_WARMED):
                found[name] = PairSystem(name, *pair, WHOLE_MAX_TOKENS)
            names = [ours(policy) for policy in policies]
            found |= await stack.enter_async_context(starter.cluster("apart", names))
        names = [mixed(reported_policy(policies))]
        return found | await stack.enter_async_context(starter.cluster("mixed", names))

    async def _calibrate(self, comparison: Comparison, shape: Shape, system: System) -> Pace:
        """How fast the system is on this shape."""
        pace = Pace(shape, await self._burst(shape, system, comparison, CALIBRATION_SESSIONS))
        self._progress.say(
            f"{comparison} {shape}: {system.name} takes {pace.tokens_per_s:,.0f} tokens/s,"
            f" {pace.prefill_s:.4f} s for a mean prompt; times x {pace.time_scale:.3f}"
        )
        return pace

    async def _warm_up(self, shape: Shape, systems: Sequence[System]) -> None:
        """The first steps of an engine are slow."""
        for system in systems:
            await self._burst(shape, system, "warm-up", WARM_UP_SESSIONS, WARM_UP_TOKENS)

    async def _burst(
        self, shape: Shape, system: System, key: str, count: int, most_tokens: int = MAX_MODEL_LEN
    ) -> float:
        """Prompt tokens a second, when so many prompts are there at once."""
        played = [
            each
            for each in burst(shape, count, f"{key}/{system.name}")
            if longest_tokens(each) < most_tokens
        ]
        record = await run_trace(system, played, "burst", answer_limit_s=600.0, settings={})
        if problem := next((each.error for each in record.sessions if each.error), ""):
            raise Stream2LLMError(f"{system.name} failed before the first cell: {problem}")
        return sum(each.num_prompt_tokens for each in record.sessions) / record.duration_s

    async def _turns(
        self, cells: Sequence[Cell], systems: Mapping[str, System], links: Mapping[str, EngineLink]
    ) -> None:
        plan = list(turns(cells, self._options.policies, self._options.repetitions))
        for turn in plan:
            link = links.get(_link_of(turn.system))
            await self._turn(turn, systems[turn.system], link.settings if link else {})

    async def _turn(self, turn: Turn, system: System, engine: Mapping[str, str | float]) -> None:
        pace = self._paces[turn.cell.comparison, turn.cell.shape]
        played = sessions_of(turn, pace, self._options.num_sessions, self._options.retrieval_factor)
        limit_s = max(LEAST_GIVEN_UP_AFTER_S, GIVEN_UP_AFTER_PREFILLS * pace.prefill_s)
        settings = {**settings_of(turn, pace), **engine, "model": self._model_path.name}
        # A collection in the middle of a run would make the driver late.
        gc.collect()
        gc.disable()
        watch = MachineWatch(self._clock)
        try:
            record = await run_trace(
                system, played, turn.cell.name, answer_limit_s=limit_s, settings=settings
            )
        finally:
            gc.enable()
        others = watch.counters(record.counters.get("cpu_s", 0.0))
        self._keep(turn, replace(record, counters={**record.counters, **others}))

    def _keep(self, turn: Turn, record: RunRecord) -> None:
        self.runs.append(record)
        self._progress.done.add(turn)
        folder = self._options.output / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{turn.cell.name} {turn.system} {turn.repetition}".replace(" ", "-")
        save_run(record, folder / f"{name}.json")
        left_s = self._progress.left_s()
        self._progress.say(f"{line_of(turn, record)}; about {left_s / 60:.0f} min left")


def _link_of(system: str) -> str:
    """By what the engine of a system is found."""
    return "stock" if policy_of(system) is None else preemption_of(system)


def settings_of(turn: Turn, pace: Pace) -> dict[str, str | float]:
    """The settings in which this run differs from others."""
    load = asdict(turn.cell.load)
    return {
        "comparison": turn.cell.comparison,
        "shape": turn.cell.shape,
        "load": load["name"],
        "repetition": turn.repetition,
        "tokens_per_s": round(pace.tokens_per_s, 1),
        REQUEST_RATE: round(pace.rate(load["share"]), 4),
        "time_scale": round(pace.time_scale, 5),
        "gap_factor": load["gap_factor"],
    }


def line_of(turn: Turn, record: RunRecord) -> str:
    """A run in one line."""
    times = sorted(each for s in record.sessions if (each := s.ttft_s) is not None)
    failed = sum(bool(session.error) for session in record.sessions)
    shown = f"TTFT P50 {1000 * times[len(times) // 2]:,.1f} ms" if times else "no answer"
    problems = f", {failed} FAILED" if failed else ""
    share = record.counters.get("others_share", 0.0)
    noise = f", others took {share:.0%} of the machine" if share > TOLERATED_SHARE else ""
    return (
        f"{turn.repetition} {turn.cell.name}: {turn.system}: {shown}{problems},"
        f" {record.duration_s:.1f} s{noise}"
    )
