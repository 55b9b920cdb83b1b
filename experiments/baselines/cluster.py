"""Our system as a whole: a local cluster with one prefill and one decode worker.

Driven through the public client, as any application would: gRPC, router, hand-over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import psutil

from experiments.baselines.cells import ours, policy_of
from experiments.baselines.engines.messages import HostSpec
from experiments.baselines.scaling import OPEN_TOKEN_BUDGET
from experiments.baselines.systems import Asking, SystemDiedError
from experiments.lab_cluster import lab_cluster
from experiments.token_sessions import TimedSplice
from stream2llm.client import AsyncClient, AsyncSession, SamplingParameters, TokenDelta
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.models.catalogue import PresetName
from stream2llm.serving.system.processes import owned_processes
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.replay.run import find_urls
from stream2llm.workload.replay.scrape import Scraper
from stream2llm.workload.replay.session import send

READY_TIMEOUT_S = 300.0


def cluster_config(model: PresetName, spec: HostSpec, cores: tuple[int, int]) -> ClusterConfig:
    """One prefill and one decode worker, each with a core, and an engine like that of `spec`."""
    role = {"env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}}
    return lab_cluster(
        "experiments.baselines",
        preset=model,
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_num_seqs,
        engine={
            "block_size": spec.block_size,
            "max_num_batched_tokens": spec.token_budget,
            "num_gpu_blocks_override": spec.num_kv_blocks,
        },
        prefill={
            **role,
            "cpu_bind": str(cores[0]),
            "offload_pool_gib": 1,
            "open_token_budget": OPEN_TOKEN_BUDGET,
        },
        decode={**role, "cpu_bind": str(cores[1])},
    )


class ClusterSystem:
    """A `System` that is a running cluster. Policies are switched while it runs."""

    def __init__(self, cluster: Cluster, client: AsyncClient, policy: str, max_tokens: int) -> None:
        self._cluster = cluster
        self._client = client
        self._policy = policy
        self._sampling = SamplingParameters(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        self._pids: frozenset[int] = frozenset()
        self._cpu_before_s = 0.0
        self._scraper = self._new_scraper()

    @property
    def name(self) -> str:
        """As in `cells`."""
        return ours(self._policy)

    def asks(self, planned: PlannedSession) -> Asking:
        """A session of the client."""
        return ClusterSession(self._client, planned, self._sampling)

    async def begin_run(self) -> None:
        """Switches the policy. Caches are left alone: the texts of a run are its own."""
        policy = policy_of(self.name)
        assert policy is not None
        state = await asyncio.to_thread(self._cluster.set_policy, policy)
        if state.errors:
            raise SystemDiedError(f"the policy was not set: {'; '.join(state.errors)}")
        self._pids = self._processes()
        self._scraper = self._new_scraper()
        await self._scraper.scrape()
        self._cpu_before_s = cpu_s(self._pids)

    async def end_run(self) -> Mapping[str, float]:
        """CPU time and metrics; a process that is another one than before has died meanwhile."""
        cpu_used_s = cpu_s(self._pids) - self._cpu_before_s
        if missing := self._pids - self._processes():
            raise SystemDiedError(
                f"processes of the cluster died: {sorted(missing)}; logs: {self._cluster.log_dir}"
            )
        await self._scraper.scrape()
        return {**self._scraper.counters(), "cpu_s": cpu_used_s}

    def _new_scraper(self) -> Scraper:
        """Used before and after a run alone: in between the cores are the systems'."""
        return Scraper(find_urls(self._client), lambda: 0.0)

    def _processes(self) -> frozenset[int]:
        return frozenset(each.pid for each in owned_processes(f"{self._cluster.cluster_id}/"))


class ClusterSession:
    """One question through the client."""

    def __init__(
        self, client: AsyncClient, planned: PlannedSession, sampling: SamplingParameters
    ) -> None:
        self._session: AsyncSession = client.session(prefix=planned.prefix, sampling=sampling)
        self._question = planned.suffix
        # What follows the opening, in order.
        self._steps = iter(planned.steps)
        self._is_open = False

    async def change(self, change: TimedSplice) -> None:
        """The first one is the opening; the others are its steps."""
        if not self._is_open:
            self._is_open = True
            await self._session.__aenter__()
        else:
            await send(self._session, next(self._steps))

    async def finish(self, last: TimedSplice) -> AsyncIterator[int]:
        """The last step, and the seal behind it."""
        await send(self._session, next(self._steps))
        async for event in self._session.seal(self._question):
            if isinstance(event, TokenDelta):
                yield len(event.token_ids)

    async def cancel(self) -> None:
        """Ends the session, whatever state it is in."""
        if self._is_open:
            await self._session.__aexit__(None, None, None)


def cpu_s(pids: frozenset[int]) -> float:
    """Seconds of CPU of these processes; those that have ended count nothing."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
