"""Starts the systems: engines of a shape, one beside the other, and whole systems. Ends them all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cost_profiles.decision import Mode
from experiments.baselines.cells import DEFAULT_PREEMPTION, Options, ours
from experiments.baselines.engines.link import EngineLink
from experiments.baselines.engines.messages import HostSpec
from experiments.baselines.scaling import TOKEN_BUDGET
from experiments.baselines.schedule import BLOCK_SIZE, MAX_MODEL_LEN, kv_blocks, max_prompt_tokens
from experiments.baselines.systems import System
from stream2llm.serving.system.signals import catch_signals
from stream2llm.workload.traces.format import Shape

MAX_NUM_SEQS = 256
WHOLE_STEP_TOKENS = 512
WHOLE_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Starter:
    """Knows models, cores and memory; what it yields ends with the block."""

    options: Options
    model_path: Path
    say: Callable[[str], None]

    @asynccontextmanager
    async def engines(
        self, shape: Shape, *, scarce: bool
    ) -> AsyncIterator[Mapping[str, EngineLink]]:
        """The stock engine, and ours by mode of preemption."""
        core, blocks = self.options.cores[1:], self._blocks(shape, scarce=scarce)
        stock = self._host_spec(core, blocks, TOKEN_BUDGET[shape])
        modes = tuple(Mode) if scarce else (DEFAULT_PREEMPTION,)
        specs = {"stock": stock}
        specs |= {mode: replace(stock, kind="ours", preemption=mode) for mode in modes}
        memory = "scarce" if scarce else "ample"
        async with self._links({f"{shape}-{memory}-{key}": s for key, s in specs.items()}) as links:
            yield dict(zip(specs, links, strict=True))

    @asynccontextmanager
    async def replicas(self) -> AsyncIterator[list[EngineLink]]:
        """The stock engine on each core, with the memory of whole systems."""
        cores = self.options.cores
        async with self._links(
            {f"replica-{core}": self._whole_spec(core) for core in cores}
        ) as each:
            yield each

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[dict[str, System]]:
        """Our system as a whole, by policy."""
        # Ray takes seconds to import, and is not needed for engines alone.
        from experiments.baselines.cluster import READY_TIMEOUT_S, ClusterSystem, cluster_config
        from stream2llm.client import AsyncClient
        from stream2llm.cluster.cluster import Cluster

        cores = self.options.cores
        config = cluster_config(self.options.model, self._whole_spec(cores[0]), cores)
        self.say("starting a cluster")
        # In this thread: Ray wants the main one, and no other task has anything to do.
        with Cluster.start(config) as cluster:
            catch_signals()  # Ray has put handlers of its own in place
            cluster.wait_ready(READY_TIMEOUT_S, self.say)
            async with AsyncClient(cluster.router_addresses[0]) as client:
                yield {
                    ours(policy): ClusterSystem(cluster, client, policy, WHOLE_MAX_TOKENS)
                    for policy in self.options.policies
                }

    @asynccontextmanager
    async def _links(self, specs: Mapping[str, HostSpec]) -> AsyncIterator[list[EngineLink]]:
        """Engines in their order, by the names of their logs."""
        links: list[EngineLink] = []
        logs = self.options.output / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        try:
            for name, spec in specs.items():
                self.say(f"starting {name}: core {spec.cores}, {spec.num_kv_blocks} KV blocks")
                links.append(await EngineLink.start(spec, logs / f"{name}.log"))
                self.say(f"{name} is ready: {dict(links[-1].settings)}")
            yield links
        finally:
            for link in links:
                await link.stop()

    def _blocks(self, shape: Shape, *, scarce: bool) -> int:
        chosen = self.options
        return kv_blocks(
            shape, chosen.num_sessions, chosen.repetitions, chosen.retrieval_factor, scarce=scarce
        )

    def _whole_spec(self, core: int) -> HostSpec:
        blocks = max(self._blocks(shape, scarce=False) for shape in self.options.shapes)
        return self._host_spec((core,), blocks, WHOLE_STEP_TOKENS)

    def _host_spec(self, cores: tuple[int, ...], blocks: int, step: int) -> HostSpec:
        return HostSpec(
            kind="stock",
            model_path=str(self.model_path),
            cores=cores,
            num_kv_blocks=blocks,
            block_size=BLOCK_SIZE,
            token_budget=step,
            max_num_seqs=MAX_NUM_SEQS,
            max_model_len=max_prompt_tokens(blocks, MAX_MODEL_LEN),
        )
