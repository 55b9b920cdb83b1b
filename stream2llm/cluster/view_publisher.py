"""Sends routers and gateways what they may use, and knows which of them has heard what."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from stream2llm.cluster import supervision as sv
from stream2llm.cluster.actions import Actions
from stream2llm.cluster.fleet_state import FleetState, loop_now_s
from stream2llm.cluster.hosts import Hosts
from stream2llm.serving.settings.launch import RouterStarted
from stream2llm.serving.settings.worker_spec import ClusterView, WorkerAddress

_log = logging.getLogger(__name__)


class ViewPublisher:
    """Owns the cluster view."""

    def __init__(self, state: FleetState, hosts: Hosts, actions: Actions) -> None:
        self.view = ClusterView(0, ())
        self._confirmed: dict[str, int] = {}  # by receiver: the version it has confirmed
        self._state = state
        self._hosts = hosts
        self._actions = actions

    @property
    def is_known(self) -> bool:
        """Whether every router and gateway that takes work knows the present view."""
        return self._is_known(self.view.version)

    def publish(self) -> None:
        """Sends a new view, if others than before may be used."""
        members = [self._state.addresses[name] for name in sv.view_members(self._state.fleet)]
        workers = tuple(a for a in members if isinstance(a, WorkerAddress))
        routers = self._router_addresses()
        if (workers, routers) == (self.view.workers, self.view.routers):
            return
        draining = sv.view_draining(self._state.fleet, loop_now_s())
        version = self.view.version + 1
        self.view = replace(
            self.view, version=version, workers=workers, draining=draining, routers=routers
        )
        for name, replica in self._state.fleet.items():
            if replica.gets_views and replica.is_alive:
                self.send(name)

    def _router_addresses(self) -> tuple[str, ...]:
        found = [self._state.addresses.get(name) for name in sv.view_routers(self._state.fleet)]
        return tuple(each.grpc_address for each in found if isinstance(each, RouterStarted))

    def send(self, name: str) -> None:
        """Sends one router or gateway the present view, in a task of its own."""
        self._actions.spawn(self._push(name, self.view))

    async def _push(self, name: str, view: ClusterView) -> None:
        incarnation = self._state.fleet[name].incarnation
        try:
            await self._hosts.push_view(name, view)
        except Exception as error:  # if it died, its watcher reports that
            _log.warning("view_not_delivered to=%s error=%s", name, error)
            return
        if self._state.is_present(name, incarnation):
            self._confirmed[name] = max(view.version, self._confirmed.get(name, 0))
            self._state.events.add(name, f"knows {len(view.workers)} workers")

    def forget(self, name: str) -> None:
        """The successor of the router or gateway knows nothing."""
        self._confirmed.pop(name, None)

    async def until_known(self, limit_s: float) -> None:
        """Returns when all know the present view, or a newer one; after `limit_s` anyway."""
        version, events = self.view.version, self._state.events
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not self._is_known(version):
                    await events.wait(events.num_events)

    def _is_known(self, version: int) -> bool:
        fleet = self._state.fleet.values()
        receivers = [r.name for r in fleet if r.gets_views and r.takes_work]
        return all(self._confirmed.get(name, -1) >= version for name in receivers)
