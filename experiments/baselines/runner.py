"""Starts systems, measures their speed, plays the traces on them in turn, ends them.

Each shape has engines of its own (its step budget, its KV memory), which are
started once and live side by side: an idle one computes nothing. Whole systems
come last. Whatever happens, every process that was started is ended.
"""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cost_profiles.decision import Mode
from experiments.baselines.answering import EngineSystem
from experiments.baselines.cells import (
    DEFAULT_PREEMPTION,
    NON_STREAMING,
    STOCK,
    Cell,
    Comparison,
    Options,
    Turn,
    cells_of,
    ours,
    phases,
    policy_of,
    preemption_of,
    reported_policy,
    turns,
)
from experiments.baselines.drive import run_trace
from experiments.baselines.engines.link import EngineLink
from experiments.baselines.engines.messages import HostSpec, Kind
from experiments.baselines.machine import TOLERATED_SHARE, MachineWatch
from experiments.baselines.scaling import TOKEN_BUDGET, Pace
from experiments.baselines.schedule import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    burst,
    kv_blocks,
    max_prompt_tokens,
    prefills_of,
    sessions_of,
)
from experiments.baselines.systems import System
from experiments.token_sessions import longest_tokens
from stream2llm.api.errors import Stream2LLMError
from stream2llm.serving.system.clock import SystemClock
from stream2llm.serving.system.signals import catch_signals
from stream2llm.workload.records import RunRecord
from stream2llm.workload.report import save_run
from stream2llm.workload.report.summary import REQUEST_RATE
from stream2llm.workload.traces.format import Shape

MAX_NUM_SEQS = 256
WHOLE_STEP_TOKENS = 512
WHOLE_MAX_TOKENS = 64
CALIBRATION_SESSIONS = 100
# Short ones, which fit into scarce memory too.
WARM_UP_SESSIONS, WARM_UP_TOKENS = 40, 1500
# Seconds of a run beside playing: emptying caches, making token ids, writing the record.
BETWEEN_S = 2.5
# Seconds to start all engines of a shape, or whole systems.
STARTS_S = 100.0
# A session without an answer for so many mean prefills is given up, but not sooner than that.
GIVEN_UP_AFTER_PREFILLS, LEAST_GIVEN_UP_AFTER_S = 500, 15.0


class Runner:
    """One run of the benchmark."""

    def __init__(self, options: Options, model_path: Path) -> None:
        self._options = options
        self._model_path = model_path
        self._clock = SystemClock()
        self._began_s = self._clock.monotonic_s()
        self._paces: dict[tuple[Comparison, Shape], Pace] = {}
        self.runs: list[RunRecord] = []
        self._done: set[Turn] = set()

    async def run(self) -> None:
        """Everything that was chosen."""
        os.sched_setaffinity(0, {self._options.cores[0]})
        for shape in self._options.shapes:
            if "engine" in self._options.comparisons:
                await self._engines(shape)
        if "whole" in self._options.comparisons and "heavy" in self._options.loads:
            # Both cores are the systems'; the driver takes what it needs of either.
            os.sched_setaffinity(0, set(self._options.cores))
            await self._whole()

    # -- engine against engine -----------------------------------------------------

    async def _engines(self, shape: Shape) -> None:
        for scarce, cells in phases(shape, self._options.loads):
            async with self._links(shape, scarce=scarce) as links:
                systems = self._engine_systems(links)
                first_of_ours = systems[ours(self._options.policies[0])]
                await self._warm_up(shape, (systems[NON_STREAMING], first_of_ours))
                if not scarce:
                    pace = await self._calibrate("engine", shape, systems[NON_STREAMING])
                    self._paces["engine", shape] = pace
                await self._turns(cells, systems, links)

    @asynccontextmanager
    async def _links(self, shape: Shape, *, scarce: bool) -> AsyncIterator[dict[str, EngineLink]]:
        """The stock engine, and ours by mode of preemption."""
        found: dict[str, EngineLink] = {}
        core, blocks = self._options.cores[1:], self._blocks(shape, scarce=scarce)
        stock = self._host_spec("stock", core, blocks, TOKEN_BUDGET[shape])
        modes = tuple(Mode) if scarce else (DEFAULT_PREEMPTION,)
        specs = {"stock": stock}
        specs |= {mode: replace(stock, kind="ours", preemption=mode) for mode in modes}
        try:
            for kind, spec in specs.items():
                name = f"{shape}-{'scarce' if scarce else 'ample'}-{kind}"
                found[kind] = await self._start(spec, name)
            yield found
        finally:
            for link in found.values():
                await link.stop()

    def _blocks(self, shape: Shape, *, scarce: bool) -> int:
        chosen = self._options
        return kv_blocks(
            shape, chosen.num_sessions, chosen.repetitions, chosen.retrieval_factor, scarce=scarce
        )

    def _engine_systems(self, links: Mapping[str, EngineLink]) -> dict[str, System]:
        by_mode = [ours(reported_policy(self._options.policies), each) for each in Mode]
        names = (*STOCK, *map(ours, self._options.policies), *by_mode)
        found = {name: links.get(_link_of(name)) for name in names}
        return {name: EngineSystem(name, [link]) for name, link in found.items() if link}

    def _host_spec(self, kind: Kind, cores: tuple[int, ...], blocks: int, step: int) -> HostSpec:
        return HostSpec(
            kind=kind,
            model_path=str(self._model_path),
            cores=cores,
            num_kv_blocks=blocks,
            block_size=BLOCK_SIZE,
            token_budget=step,
            max_num_seqs=MAX_NUM_SEQS,
            max_model_len=max_prompt_tokens(blocks, MAX_MODEL_LEN),
        )

    async def _start(self, spec: HostSpec, name: str) -> EngineLink:
        self.say(f"starting {name}: core {spec.cores}, {spec.num_kv_blocks} KV blocks")
        logs = self._options.output / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        link = await EngineLink.start(spec, logs / f"{name}.log")
        self.say(f"{name} is ready: {dict(link.settings)}")
        return link

    # -- whole systems -------------------------------------------------------------

    async def _whole(self) -> None:
        blocks = max(self._blocks(shape, scarce=False) for shape in self._options.shapes)
        async with self._replicas(blocks) as replicas, self._cluster(blocks) as systems:
            for name in STOCK:
                systems[name] = EngineSystem(name, replicas, WHOLE_MAX_TOKENS)
            slowest = (NON_STREAMING, ours(self._options.policies[0]))
            for shape in self._options.shapes:
                await self._warm_up(shape, [systems[name] for name in slowest])
                found = [await self._calibrate("whole", shape, systems[name]) for name in slowest]
                pace = min(found, key=lambda each: each.tokens_per_s)
                self._paces["whole", shape] = pace
                await self._turns(cells_of("whole", shape, self._options.loads), systems, {})

    @asynccontextmanager
    async def _replicas(self, blocks: int) -> AsyncIterator[list[EngineLink]]:
        links: list[EngineLink] = []
        try:
            for core in self._options.cores:
                spec = self._host_spec("stock", (core,), blocks, WHOLE_STEP_TOKENS)
                links.append(await self._start(spec, f"replica-{core}"))
            yield links
        finally:
            for link in links:
                await link.stop()

    @asynccontextmanager
    async def _cluster(self, blocks: int) -> AsyncIterator[dict[str, System]]:
        # Ray takes seconds to import, and is not needed for engines alone.
        from experiments.baselines.cluster import READY_TIMEOUT_S, ClusterSystem, cluster_config
        from stream2llm.client import AsyncClient
        from stream2llm.cluster.cluster import Cluster

        config = cluster_config(str(self._model_path), _cluster_args(blocks), self._options.cores)
        self.say("starting a cluster")
        # In this thread: Ray wants the main one, and no other task has anything to do.
        with Cluster.start(config) as cluster:
            catch_signals()  # Ray has put handlers of its own in place
            cluster.wait_ready(READY_TIMEOUT_S, self.say)
            async with AsyncClient(cluster.router_addresses[0]) as client:
                yield {
                    ours(policy): ClusterSystem(cluster, client, policy, WHOLE_MAX_TOKENS)
                    for policy in self._options.policies
                }

    # -- cells ---------------------------------------------------------------------

    async def _calibrate(self, comparison: Comparison, shape: Shape, system: System) -> Pace:
        """How fast the system is on this shape."""
        pace = Pace(shape, await self._burst(shape, system, comparison, CALIBRATION_SESSIONS))
        self.say(
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
        self._done.add(turn)
        folder = self._options.output / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{turn.cell.name} {turn.system} {turn.repetition}".replace(" ", "-")
        save_run(record, folder / f"{name}.json")
        self.say(f"{line_of(turn, record)}; about {self.left_s() / 60:.0f} min left")

    # -- progress ------------------------------------------------------------------

    def say(self, line: str) -> None:
        """One line, with the time since the beginning."""
        passed_s = self._clock.monotonic_s() - self._began_s
        print(f"[{int(passed_s) // 60:3d}:{int(passed_s) % 60:02d}] {line}", flush=True)

    def left_s(self) -> float:
        """About how long the rest takes."""
        options, total = self._options, 0.0
        for comparison in options.comparisons:
            for shape in options.shapes:
                cells = cells_of(comparison, shape, options.loads)
                prefill_s = self._prefill_s(comparison, shape)
                plan = turns(cells, options.policies, options.repetitions)
                left = [turn for turn in plan if turn not in self._done]
                total += sum(BETWEEN_S + self._prefills(turn) * prefill_s for turn in left)
                if (comparison, shape) not in self._paces:
                    total += STARTS_S
        return total

    def _prefills(self, turn: Turn) -> float:
        one = replace(turn, system=NON_STREAMING)  # All systems' traces are as long as this one's.
        return prefills_of(one, self._options.num_sessions, self._options.retrieval_factor)

    def _prefill_s(self, comparison: Comparison, shape: Shape) -> float:
        """Measured, or that of the newest one that was."""
        newest = list(self._paces.values())[-1]
        pace = self._paces.get((comparison, shape), Pace(shape, newest.tokens_per_s))
        return pace.prefill_s


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


def _cluster_args(blocks: int) -> dict[str, Any]:
    return {
        "dtype": "bfloat16",
        "enforce_eager": True,
        "block_size": BLOCK_SIZE,
        "max_model_len": max_prompt_tokens(blocks, MAX_MODEL_LEN),
        "max_num_batched_tokens": WHOLE_STEP_TOKENS,
        "max_num_seqs": MAX_NUM_SEQS,
        "num_gpu_blocks_override": blocks,
    }
