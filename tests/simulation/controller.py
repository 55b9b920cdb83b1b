"""The controller of the simulated cluster: supervisor, rolling restarts, state, adoption.

All of them are the production code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from stream2llm.cluster import supervision as sv
from stream2llm.cluster.adoption import SavedState
from stream2llm.cluster.rolling_restart import RollingRestart
from stream2llm.cluster.rollout import State
from stream2llm.cluster.state_store import StateStore
from stream2llm.cluster.supervisor import Settings, Supervisor
from tests.simulation.hosts import VirtualHosts
from tests.simulation.loop import VirtualClock

SETTINGS = Settings(
    max_start_failures=3,
    health_interval_s=5.0,
    unresponsive_after_s=15.0,
    drain_timeout_s=10.0,
    nodes_interval_s=30.0,
)


class Values:
    """A store that outlives the controllers."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self._values[key] = value

    def delete(self, key: str) -> None:
        self._values.pop(key, None)


class VirtualController:
    """One controller process's work; the next one goes on with what it has saved."""

    def __init__(
        self, roles: Mapping[str, sv.Role], hosts: VirtualHosts, values: Values, clock: VirtualClock
    ) -> None:
        self._roles = roles
        self._hosts = hosts
        self._clock = clock
        self._store = StateStore("virtual", self._state, values)
        self._num_controllers = 1
        self.supervisor = Supervisor(roles, hosts, SETTINGS, self._store.changed)
        self.rolling = RollingRestart(self.supervisor, hosts, self._store.changed)
        # It has taken over, and operators can ask.
        self.is_listening = False

    async def run(self) -> None:
        """Supervises until it is cancelled."""
        saved = await self._store.load()
        living = self._hosts.find()
        if saved is not None or living:
            saved = (saved or SavedState({})).at(self._clock.monotonic_s(), self._clock.wall_s())
            self._num_controllers = self.supervisor.take_over(self._roles, saved, living)
            self.rolling.rollout = saved.rollout
        await self._store.save()
        self.is_listening = True
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._store.run())
            tasks.create_task(self.supervisor.run())
            tasks.create_task(self.rolling.run())

    @property
    def is_done(self) -> bool:
        """Whether the cluster is complete, and no rolling restart is under way."""
        rollout, fleet = self.rolling.rollout, self.supervisor.fleet
        is_over = rollout is None or rollout.state is not State.RUNNING
        return is_over and fleet.keys() == self._roles.keys() and self.supervisor.is_ready

    def _state(self) -> SavedState:
        return SavedState(
            fleet=dict(self.supervisor.fleet),
            addresses=dict(self.supervisor.addresses),
            num_controllers=self._num_controllers,
            rollout=self.rolling.rollout,
            loop_s=self._clock.monotonic_s(),
            wall_s=self._clock.wall_s(),
        )
