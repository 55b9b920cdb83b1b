"""Plays the load and the faults on one cluster; asks another one for the same answers."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

from experiments.faults.parts import Part, living_parts
from experiments.faults.plan import Fault, Strike, victim
from experiments.faults.report import Check, Run, to_compare
from experiments.token_sessions import prompt_ids
from stream2llm.api.tasks import TaskGroup
from stream2llm.client import AsyncClient, SamplingParameters, UnavailableError
from stream2llm.cluster.cluster import Cluster
from stream2llm.serving.system.clock import SystemClock
from stream2llm.serving.system.processes import signal_owned
from stream2llm.workload.replay.driver import Driver
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.replay.session import Asking

RECOVERED_WITHIN_S = 1800.0
# Between two looks at which routers there are.
ROUTERS_INTERVAL_S = 1.0
# Blocks of a decode worker that died are released by the end of their lease.
FREE_WITHIN_S = 60.0
FREE_INTERVAL_S = 1.0


class Striker:
    """Strikes one cluster."""

    def __init__(
        self,
        cluster_id: str,
        elapsed_s: Callable[[], float],
        report: Callable[[Strike], None],
    ) -> None:
        """`elapsed_s` returns the seconds since the beginning of the load."""
        self._cluster_id = cluster_id
        self._elapsed_s = elapsed_s
        self._report = report
        self._stopped: dict[asyncio.Task[None], Part] = {}
        self.strikes: list[Strike] = []

    async def run(self, plan: Sequence[Fault]) -> None:
        """Carries the plan out; whatever it has stopped goes on at its end."""
        try:
            for fault in plan:
                await asyncio.sleep(max(0.0, fault.at_s - self._elapsed_s()))
                await self._strike(fault)
            await asyncio.gather(*self._stopped)
        finally:
            for task, part in self._stopped.items():
                task.cancel()
                signal_owned(part.process, signal.SIGCONT)  # one that goes on does not notice

    async def _strike(self, fault: Fault) -> None:
        parts = await asyncio.to_thread(living_parts, self._cluster_id)
        part = victim(fault, parts)
        how = signal.SIGKILL if fault.stopped_s is None else signal.SIGSTOP
        if part is None or not signal_owned(part.process, how):
            return  # it has ended a moment ago
        if fault.stopped_s is not None:
            self._stopped[asyncio.create_task(_go_on(part, fault.stopped_s))] = part
        strike = Strike(
            self._elapsed_s(), part.replica, part.incarnation, part.kind, fault.stopped_s
        )
        self.strikes.append(strike)
        self._report(strike)


async def _go_on(part: Part, after_s: float) -> None:
    await asyncio.sleep(after_s)
    signal_owned(part.process, signal.SIGCONT)  # unless it was killed meanwhile


async def play(
    cluster: Cluster, asked: Sequence[PlannedSession], planned: Sequence[Fault], asking: Asking
) -> Run:
    """Returns when every session has ended, and every worker is ready again."""
    async with AsyncClient(cluster.router_addresses) as client:
        driver = Driver(asked, [client], asking, SystemClock())
        striker = Striker(cluster.cluster_id, lambda: driver.elapsed_s, partial(_show, driver))
        async with TaskGroup() as beside:
            following = beside.create_task(_follow_routers(cluster, client))
            async with TaskGroup() as group:
                group.create_task(striker.run(planned))
                group.create_task(driver.run(asyncio.Event()))
            following.cancel()
        await asyncio.to_thread(cluster.wait_ready, RECOVERED_WITHIN_S)
        num_blocks_held = await _blocks_held(client)
    status = await asyncio.to_thread(cluster.status)
    return Run(
        records=driver.records(),
        answers=driver.answers(),
        strikes=tuple(striker.strikes),
        num_replaced=sum(replica["restarts"] for replica in status["replicas"])
        + status["controller_restarts"],
        num_blocks_held=num_blocks_held,
    )


async def _follow_routers(cluster: Cluster, client: AsyncClient) -> None:
    """Gives the client the routers that there are, until cancelled.

    The successor of a lost one has another port.
    """
    while True:
        await asyncio.sleep(ROUTERS_INTERVAL_S)
        try:
            addresses = await asyncio.to_thread(lambda: cluster.router_addresses)
        except UnavailableError:
            continue  # the controller is the one that stands still
        if addresses:
            client.set_routers(addresses)


def _show(driver: Driver, strike: Strike) -> None:
    now = driver.snapshot()
    print(
        f"[{strike.at_s:6.0f} s] {strike.line}; sessions: {now.num_open} open,"
        f" {now.num_answered} answered, {now.num_failed} failed",
        file=sys.stderr,
        flush=True,
    )


async def _blocks_held(client: AsyncClient) -> int:
    """Returns what workers still hold when all should be released, or the time for that is over."""
    for _ in range(round(FREE_WITHIN_S / FREE_INTERVAL_S)):
        workers = (await client.server_info()).workers
        if not (held := sum(worker.num_kv_blocks_held for worker in workers)):
            break
        await asyncio.sleep(FREE_INTERVAL_S)
    return held


async def compare(
    alone: Cluster,
    asked: Sequence[PlannedSession],
    run: Run,
    sampling: SamplingParameters,
    most: int,
) -> Check:
    """Asks a cluster that nothing happens to for the same answers, `most` of them."""
    prompts = {each.session_id: prompt_ids(each) for each in asked}
    compared, differing = to_compare(run, most), list[str]()
    async with AsyncClient(alone.router_addresses) as client:
        for session_id in compared:
            answer = await client.generate(prompts[session_id], sampling=sampling).answer()
            if list(answer.token_ids) != run.answers[session_id]:
                differing.append(session_id)
    return Check(len(compared), tuple(differing))
