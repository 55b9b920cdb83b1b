"""Starts the systems: engines of a shape, one beside the other, and whole systems. Ends them all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cost_profiles.decision import Mode
from experiments.baselines.cells import DEFAULT_PREEMPTION, Options
from experiments.baselines.engines.link import EngineLink
from experiments.baselines.engines.messages import HostSpec, KvRole
from experiments.baselines.scaling import TOKEN_BUDGET
from experiments.baselines.schedule import BLOCK_SIZE, MAX_MODEL_LEN, kv_blocks, max_prompt_tokens
from experiments.baselines.systems import System
from stream2llm.workload.traces.format import Shape

if TYPE_CHECKING:
    from experiments.baselines.cluster_host import Shape as ClusterShape

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
    async def pair(self) -> AsyncIterator[tuple[EngineLink, EngineLink]]:
        """The stock engine on each core: one that prefills, and one that reads its KV."""
        roles: tuple[KvRole, KvRole] = ("kv_producer", "kv_consumer")
        specs = {
            f"pair-{role}": replace(self._whole_spec(core), kv_role=role)
            for role, core in zip(roles, self.options.cores, strict=True)
        }
        async with self._links(specs) as (prefill, decode):
            yield prefill, decode

    @asynccontextmanager
    async def cluster(
        self, shape: ClusterShape, names: Sequence[str]
    ) -> AsyncIterator[dict[str, System]]:
        """Our system as a whole, under each of these names."""
        # Ray takes seconds to import, and is not needed for engines alone.
        from experiments.baselines.cluster import ClusterSystem
        from experiments.baselines.cluster_host import ClusterHostSpec
        from experiments.baselines.cluster_link import ClusterLink
        from stream2llm.client import AsyncClient

        cores, model = self.options.cores, self.options.model
        self.say(f"starting a cluster ({shape})")
        spec = ClusterHostSpec(shape, model, self._whole_spec(cores[0]), cores)
        link = await ClusterLink.start(spec, self._log(f"cluster-{shape}"))
        try:
            async with AsyncClient(link.router_address) as client:
                yield {name: ClusterSystem(name, link, client, WHOLE_MAX_TOKENS) for name in names}
        finally:
            await link.stop()

    @asynccontextmanager
    async def _links(self, specs: Mapping[str, HostSpec]) -> AsyncIterator[list[EngineLink]]:
        """Engines in their order, by the names of their logs."""
        links: list[EngineLink] = []
        try:
            for name, spec in specs.items():
                self.say(f"starting {name}: core {spec.cores}, {spec.num_kv_blocks} KV blocks")
                links.append(await EngineLink.start(spec, self._log(name)))
                self.say(f"{name} is ready: {dict(links[-1].settings)}")
            yield links
        finally:
            for link in links:
                await link.stop()

    def _log(self, name: str) -> Path:
        logs = self.options.output / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return logs / f"{name}.log"

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
