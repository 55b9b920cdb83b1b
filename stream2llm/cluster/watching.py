"""Notices that a replica has died, gives no answer, or is about to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from stream2llm.cluster.fleet_state import FleetState, loop_now_s
from stream2llm.cluster.hosts import Hosts
from stream2llm.serving.actor.loss import Cause, Loss
from stream2llm.serving.actor.replica_status import ReplicaStatus
from stream2llm.serving.settings.worker_spec import WorkerStatus
from stream2llm.serving.system.silence import Silence, is_answered


class Watcher:
    """Watches replicas, one task for each incarnation, and their nodes."""

    def __init__(
        self,
        state: FleetState,
        hosts: Hosts,
        drain: Callable[[str], object],
        health_interval_s: float,
        unresponsive_after_s: float,
    ) -> None:
        """`drain` takes a replica that is about to end out of use."""
        self._state = state
        self._hosts = hosts
        self._drain = drain
        self._health_interval_s = health_interval_s
        self._unresponsive_after_s = unresponsive_after_s

    async def watch(self, name: str, incarnation: int) -> None:
        """Waits for the death of one incarnation, whichever way it is noticed."""
        watchers = {
            asyncio.ensure_future(self._hosts.wait_dead(name)),
            asyncio.ensure_future(self._check_health(name)),
        }
        try:
            done, _ = await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
            self._state.died(name, incarnation, done.pop().result())
        finally:
            for watcher in watchers:
                watcher.cancel()

    async def watch_nodes(self, interval_s: float) -> None:
        """Looks for nodes that are about to end, until it is cancelled."""
        while True:
            for name in await self._hosts.leaving():
                if name in self._state.fleet and self._state.fleet[name].takes_work:
                    self._state.events.add(name, "is on a node that is about to end")
                    self._drain(name)
            await asyncio.sleep(interval_s)

    async def _check_health(self, name: str) -> Loss:
        while True:
            loss = await self.probe(name, self._unresponsive_after_s)
            if loss is not None:
                return loss
            await asyncio.sleep(self._health_interval_s)

    async def probe(self, name: str, timeout_s: float) -> Loss | None:
        """Asks a replica for its status; returns why it counts as lost, None if it answers."""
        question = asyncio.ensure_future(self._hosts.status(name))
        try:
            if not await is_answered(question, Silence(timeout_s), loop_now_s):
                return Loss(Cause.UNRESPONSIVE, f"gave no answer for {timeout_s:.0f} s")
            status = question.result()
        except Exception as error:
            return Loss(Cause.DIED, f"status call failed: {error}")
        finally:
            question.cancel()
        if news := news_of(self._state.statuses.get(name), status):
            self._state.events.add(name, news)
        self._state.statuses[name] = status
        if status.is_draining:  # its node or pod is about to end
            self._drain(name)
        return None


def news_of(before: ReplicaStatus | None, now: ReplicaStatus) -> str:
    """Returns the event in a status, against the one before; "" for none."""
    if not isinstance(now, WorkerStatus) or not now.policy_failure:
        return ""
    if isinstance(before, WorkerStatus) and before.policy_failure == now.policy_failure:
        return ""
    return f"follows {now.policy} now: {now.policy_failure}"
