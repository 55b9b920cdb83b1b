"""Our system as a whole: a local cluster with one prefill and one decode worker, or two mixed ones.

Driven through the public client, as any application would: gRPC, router, hand-over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import psutil

from experiments.baselines.cells import policy_of
from experiments.baselines.cluster_link import ClusterLink
from experiments.baselines.systems import Asking, SystemDiedError
from experiments.token_sessions import TimedSplice
from stream2llm.client import AsyncClient, AsyncSession, SamplingParameters, TokenDelta
from stream2llm.serving.system.processes import owned_processes
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.replay.run import find_urls
from stream2llm.workload.replay.scrape import Scraper
from stream2llm.workload.replay.session import send


class ClusterSystem:
    """A `System` that is a running cluster. Policies are switched while it runs."""

    def __init__(
        self, name: str, cluster: ClusterLink, client: AsyncClient, max_tokens: int
    ) -> None:
        self._name = name
        self._cluster = cluster
        self._client = client
        self._sampling = SamplingParameters(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        self._pids: frozenset[int] = frozenset()
        self._cpu_before_s = 0.0
        self._scraper = self._new_scraper()

    @property
    def name(self) -> str:
        """As in `cells`."""
        return self._name

    def asks(self, planned: PlannedSession) -> Asking:
        """A session of the client."""
        return ClusterSession(self._client, planned, self._sampling)

    async def begin_run(self) -> None:
        """Switches the policy. Caches are left alone: the texts of a run are its own."""
        policy = policy_of(self.name)
        assert policy is not None
        await self._cluster.set_policy(policy)
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
