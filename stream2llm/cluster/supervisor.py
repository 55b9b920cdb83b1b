"""Carries out the decisions of `supervision`: one loop, one task per action under way.

Composes the parts that act (`Replacer`, `Connector`, `Watcher`, `Drainer`, `ViewPublisher`)
around one `FleetState`. Independent of Ray: all access to actors goes through `Hosts`, so
tests run it against fakes in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from stream2llm.api.errors import UnavailableError
from stream2llm.cluster import supervision as sv
from stream2llm.cluster.actions import Actions
from stream2llm.cluster.adoption import SavedState, restored, restored_view
from stream2llm.cluster.connecting import Connector
from stream2llm.cluster.draining import Drainer
from stream2llm.cluster.fleet_state import FleetState, loop_now_s
from stream2llm.cluster.hosts import Hosts
from stream2llm.cluster.replacing import Replacer
from stream2llm.cluster.view_publisher import ViewPublisher
from stream2llm.cluster.watching import Watcher
from stream2llm.serving.actor.replica_status import ReplicaStatus
from stream2llm.serving.settings.launch import Started
from stream2llm.serving.settings.router_spec import DEFAULT_DRAIN_TIMEOUT_S
from stream2llm.serving.settings.worker_spec import ClusterView


@dataclass(frozen=True, slots=True)
class Settings:
    """Timeouts and limits of the supervisor."""

    max_start_failures: int
    health_interval_s: float
    unresponsive_after_s: float
    # A handshake takes seconds; after this its answer is lost.
    connect_timeout_s: float = 120.0
    # For each query after a failed connection: examining a worker, or connecting it with
    # another one.
    evidence_timeout_s: float = 30.0
    # For the sessions of a worker that drains, and for routers to hear of it before.
    drain_timeout_s: float = DEFAULT_DRAIN_TIMEOUT_S
    view_timeout_s: float = 5.0
    # Between two looks at whether a node is about to end.
    nodes_interval_s: float = 3.0


class Supervisor:
    """Brings the fleet to the desired state, and keeps it there while `run` runs."""

    def __init__(
        self,
        roles: Mapping[str, sv.Role],
        hosts: Hosts,
        settings: Settings,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        limits = settings
        self._settings = settings
        self._state = state = FleetState(roles)
        self._actions = actions = Actions()
        self._views = views = ViewPublisher(state, hosts, actions)
        self._drainer = Drainer(
            state, hosts, views, actions, limits.drain_timeout_s, limits.view_timeout_s
        )
        self._watcher = watcher = Watcher(
            state, hosts, self._drainer.begin, limits.health_interval_s, limits.unresponsive_after_s
        )
        self._connector = Connector(
            state, hosts, watcher.probe, limits.connect_timeout_s, limits.evidence_timeout_s
        )
        self._replacer = Replacer(
            state, hosts, limits.max_start_failures, self._attend, views.forget
        )
        self._changed = asyncio.Event()
        for observer in (views.publish, self._changed.set, on_change):
            state.observe(observer)

    # -- queries -----------------------------------------------------------

    @property
    def fleet(self) -> sv.Fleet:
        """Every router, gateway and worker that should exist."""
        return self._state.fleet

    @property
    def addresses(self) -> Mapping[str, Started]:
        """The address of each replica that has started, by name, until nothing is left of it."""
        return self._state.addresses

    @property
    def statuses(self) -> Mapping[str, ReplicaStatus]:
        """What each replica has answered to its last health check, by name."""
        return self._state.statuses

    @property
    def view(self) -> ClusterView:
        """What routers and gateways are to know."""
        return self._views.view

    @property
    def is_ready(self) -> bool:
        """Whether every desired replica is ready, and every router knows of it."""
        return sv.is_ready(self.fleet) and self._views.is_known

    @property
    def num_events(self) -> int:
        """Number of events so far."""
        return self._state.events.num_events

    def events_since(self, seen: int) -> list[str]:
        """Returns the events after the first `seen`, as far as they are kept."""
        return self._state.events.since(seen)

    async def wait_change(self, seen: int) -> None:
        """Returns once there are more than `seen` events, or fewer: others were an earlier controller's."""
        await self._state.events.wait(seen)

    # -- requests ----------------------------------------------------------

    def retry(self, name: str | None) -> list[str]:
        """Retries at once what was given up or waits to be recreated; returns the names.

        `name` None: all of them. Raises KeyError for an unknown name.
        """
        names = list(self.fleet) if name is None else [self.fleet[name].name]
        again = []
        for each in names:
            fleet = sv.retried(self.fleet, each)
            if fleet is not self.fleet:
                again.append(each)
                self._state.events.add(each, "is tried again, as requested")
                self._state.apply(fleet)
        return again

    def drain(self, name: str, timeout_s: float | None = None, *, stays_away: bool = False) -> bool:
        """Takes a replica out of use; once its sessions have ended it is replaced, or stopped.

        Returns whether it was in use. Raises KeyError for an unknown name, and UnavailableError
        while `run` does not run: a controller that has just begun, or is ending.
        """
        if not self._actions.is_open:
            raise UnavailableError(
                "the controller is starting or ending, and drains nothing now: try again",
                reason="NOT_SUPERVISING",
            )
        return self._drainer.begin(name, timeout_s, stays_away=stays_away)

    def add(self, name: str, role: sv.Role) -> None:
        """Creates one replica more, for a time; the cluster is ready without it, too."""
        self._state.apply(sv.with_extra(self.fleet, name, role))

    def forget(self, name: str) -> None:
        """Ends that time: nothing of the replica is left."""
        self._state.apply(sv.without(self.fleet, name))

    def take_over(
        self, roles: Mapping[str, sv.Role], saved: SavedState, living: Mapping[str, int]
    ) -> int:
        """Goes on with what an earlier controller has left; call it before `run`.

        `saved` is as of now, `living` has the incarnation of each living actor. Returns the
        number of this controller.
        """
        number = saved.num_controllers + 1
        fleet = restored(roles, saved, living)
        self.restore(fleet, saved.addresses, restored_view(fleet, saved, number))
        return number

    def restore(
        self,
        fleet: sv.Fleet,
        addresses: Mapping[str, Started],
        view: ClusterView,
    ) -> None:
        """Sets what an earlier controller has left; call it before `run`."""
        self._state.restore(fleet, addresses)
        self._views.view = view

    def set_controller_address(self, address: str) -> None:
        """Sets host:port of the controller's HTTP, for all views; call it before `run`."""
        self._views.view = replace(self.view, controller_address=address)

    # -- the loop ----------------------------------------------------------

    async def run(self) -> None:
        """Supervises until it is cancelled; leaves the actors as they are."""
        async with self._actions:
            self._resume()
            self._actions.spawn(self._watcher.watch_nodes(self._settings.nodes_interval_s))
            while True:
                self._changed.clear()
                self._begin_actions()
                await self._sleep_until_due()

    def _resume(self) -> None:
        """Continues with what was restored; a new fleet has nothing of that."""
        for name, replica in self.fleet.items():
            if replica.phase is sv.Phase.STARTING:
                self._actions.spawn(self._replacer.start(name))
            if replica.is_alive:
                self._attend(name)
            if replica.phase is sv.Phase.DRAINING:
                self._drainer.resume(name)

    def _attend(self, name: str) -> None:
        """Watches a replica that answers; routers and gateways get the view."""
        self._actions.spawn(self._watcher.watch(name, self.fleet[name].incarnation))
        if self.fleet[name].gets_views:
            self._views.send(name)

    def _begin_actions(self) -> None:
        for action in sv.plan(self.fleet, loop_now_s()):
            self._state.begin(action)
            match action:
                case sv.Create(name):
                    self._actions.spawn(self._replacer.create(name))
                case sv.Clean(name):
                    self._actions.spawn(self._replacer.clean(name))
                case sv.Connect(decode, prefill):
                    self._actions.spawn(self._connector.connect(decode, prefill))

    async def _sleep_until_due(self) -> None:
        due_s = sv.next_due_s(self.fleet)
        wait_s = None if due_s is None else max(0.0, due_s - loop_now_s())
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait()
