"""Takes replicas out of use, and ends them once their sessions have ended."""

from __future__ import annotations

import logging

from stream2llm.cluster import supervision as sv
from stream2llm.cluster.actions import Actions
from stream2llm.cluster.fleet_state import FleetState, loop_now_s
from stream2llm.cluster.hosts import Hosts
from stream2llm.cluster.view_publisher import ViewPublisher

_log = logging.getLogger(__name__)


class Drainer:
    """Drains one replica, in a task of its own."""

    def __init__(
        self,
        state: FleetState,
        hosts: Hosts,
        views: ViewPublisher,
        actions: Actions,
        limit_s: float,
        view_timeout_s: float,
    ) -> None:
        """`limit_s`: for the sessions; `view_timeout_s`: for routers to hear of it before."""
        self._state = state
        self._hosts = hosts
        self._views = views
        self._actions = actions
        self._limit_s = limit_s
        self._view_timeout_s = view_timeout_s

    def begin(self, name: str, limit_s: float | None = None, *, stays_away: bool = False) -> bool:
        """Takes a replica out of use; see `Supervisor.drain`."""
        limit_s = self._limit_s if limit_s is None else limit_s
        by_s = loop_now_s() + limit_s
        fleet = sv.draining(self._state.fleet, name, by_s, stays_away=stays_away)
        if fleet is self._state.fleet:
            return False
        self._state.events.add(name, f"drains: its sessions have {limit_s:g} s")
        self._state.apply(fleet)
        self._actions.spawn(self._drain(name, limit_s))
        return True

    def resume(self, name: str) -> None:
        """Goes on with a drain that an earlier controller has begun."""
        left_s = self._state.fleet[name].drain_by_s - loop_now_s()
        self._actions.spawn(self._drain(name, max(left_s, 0.0)))

    async def _drain(self, name: str, limit_s: float) -> None:
        incarnation = self._state.fleet[name].incarnation
        # Then no router sends it a new session.
        await self._views.until_known(self._view_timeout_s)
        try:
            # Its successor has the same name.
            if self._state.is_draining(name, incarnation):
                await self._hosts.drain(name, limit_s)
            if self._state.is_draining(name, incarnation):
                await self._hosts.stop(name)
        except Exception as error:  # if it died, its watcher reports that
            _log.warning("no_graceful_drain name=%s error=%r", name, error)
        if self._state.is_draining(name, incarnation):
            self._state.events.add(name, "has drained")
            self._state.apply(sv.drained(self._state.fleet, name))
