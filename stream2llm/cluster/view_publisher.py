"""Sends routers the workers that they may use, and knows which router has heard what."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from stream2llm.cluster import supervision as sv
from stream2llm.cluster.actions import Actions
from stream2llm.cluster.fleet_state import FleetState, loop_now_s
from stream2llm.cluster.hosts import Hosts
from stream2llm.serving.worker_spec import ClusterView, WorkerAddress

_log = logging.getLogger(__name__)


class ViewPublisher:
    """Owns the cluster view."""

    def __init__(self, state: FleetState, hosts: Hosts, actions: Actions) -> None:
        self.view = ClusterView(0, ())
        self._confirmed: dict[str, int] = {}  # by router: the version it has confirmed
        self._state = state
        self._hosts = hosts
        self._actions = actions

    @property
    def is_known(self) -> bool:
        """Whether every router that takes work knows the present view."""
        return self._is_known(self.view.version)

    def publish(self) -> None:
        """Sends a new view, if other workers than before may be used."""
        members = [self._state.addresses[name] for name in sv.view_members(self._state.fleet)]
        workers = tuple(a for a in members if isinstance(a, WorkerAddress))
        if workers == self.view.workers:
            return
        draining = sv.view_draining(self._state.fleet, loop_now_s())
        version = self.view.version + 1
        self.view = replace(self.view, version=version, workers=workers, draining=draining)
        for name, replica in self._state.fleet.items():
            if replica.role == "router" and replica.is_alive:
                self.send(name)

    def send(self, router: str) -> None:
        """Sends one router the present view, in a task of its own."""
        self._actions.spawn(self._push(router, self.view))

    async def _push(self, router: str, view: ClusterView) -> None:
        incarnation = self._state.fleet[router].incarnation
        try:
            await self._hosts.push_view(router, view)
        except Exception as error:  # if it died, its watcher reports that
            _log.warning("view_not_delivered router=%s error=%s", router, error)
            return
        if self._state.is_present(router, incarnation):
            self._confirmed[router] = max(view.version, self._confirmed.get(router, 0))
            self._state.events.add(router, f"knows {len(view.workers)} workers")

    def forget(self, router: str) -> None:
        """The router's successor knows nothing."""
        self._confirmed.pop(router, None)

    async def until_known(self, limit_s: float) -> None:
        """Returns when all routers know the present view, or a newer one; after `limit_s` anyway."""
        version, events = self.view.version, self._state.events
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not self._is_known(version):
                    await events.wait(events.num_events)

    def _is_known(self, version: int) -> bool:
        fleet = self._state.fleet.values()
        routers = [r.name for r in fleet if r.role == "router" and r.takes_work]
        return all(self._confirmed.get(name, -1) >= version for name in routers)
