"""Carries out the decisions of `supervision`: one loop, one task per action under way.

Owns the fleet, the addresses and the cluster view. Independent of Ray: all access to
actors goes through `Hosts`, so tests run it against fakes in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from stream2llm.cluster import supervision as sv
from stream2llm.serving.launch import RouterStarted, StartOutcome
from stream2llm.serving.loss import Cause, lost_by
from stream2llm.serving.silence import Silence, is_answered
from stream2llm.serving.worker_spec import ClusterView, WorkerAddress

_log = logging.getLogger(__name__)

EVENTS_KEPT = 1000


class Hosts(Protocol):
    """The actors by name."""

    async def create(
        self, name: str, incarnation: int, waits: Callable[[str], None]
    ) -> StartOutcome:
        """Creates the actor and starts what it hosts; returns errors in the outcome.

        Calls `waits` with what no node has while there is no place for the actor, and with
        "" once there is.
        """

    async def wait_dead(self, name: str) -> str:
        """Returns a reason once the process or its engine is dead."""

    async def connect(self, decode: str, prefill: WorkerAddress) -> None:
        """Makes the decode worker shake hands; raises when that fails."""

    async def examine(self, name: str) -> str:
        """Returns what keeps others from connecting with a worker, or ""; raises if it is dead."""

    async def status(self, name: str) -> Any:
        """Returns the load; raises when the process is dead."""

    async def push_view(self, router: str, view: ClusterView) -> None:
        """Sends a router the view; raises when it is dead."""

    async def leaving(self) -> Collection[str]:
        """Returns the replicas whose node is about to end."""

    async def drain(self, name: str, timeout_s: float) -> None:
        """Returns when the replica's sessions have ended, which takes about so long at most."""

    async def stop(self, name: str) -> None:
        """Ends what the actor hosts, if possible."""

    async def clean(self, name: str) -> None:
        """Kills the actor and every process it left."""


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
    drain_timeout_s: float = 30.0
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
        self.fleet = sv.new_fleet(roles)
        self.view = ClusterView(0, ())
        self.addresses: dict[str, WorkerAddress | RouterStarted] = {}
        self.statuses: dict[str, Any] = {}
        self.num_events = 0
        self._began_s: dict[str, float] = {}  # by replica: its last start, once it had room
        self._known_views: dict[str, int] = {}  # by router: the version it has confirmed
        self._events: deque[str] = deque(maxlen=EVENTS_KEPT)
        self._hosts = hosts
        self._settings = settings
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._listeners: set[asyncio.Event] = set()
        self._group = asyncio.TaskGroup()

    # -- queries -----------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether every desired replica is ready, and every router knows of it."""
        return sv.is_ready(self.fleet) and self._is_known(self.view.version)

    def events_since(self, seen: int) -> list[str]:
        """Returns the events after the first `seen`, as far as they are kept."""
        seen = seen if seen <= self.num_events else 0  # of an earlier controller
        new = min(self.num_events - seen, len(self._events))
        return list(self._events)[len(self._events) - new :] if new > 0 else []

    async def wait_change(self, seen: int) -> None:
        """Returns once there are more than `seen` events, or fewer: others were an earlier controller's."""
        listener = asyncio.Event()
        self._listeners.add(listener)
        try:
            while self.num_events == seen:
                listener.clear()
                await listener.wait()
        finally:
            self._listeners.discard(listener)

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
                self._note(each, "is tried again, as requested")
                self._apply(fleet)
        return again

    def drain(self, name: str, timeout_s: float | None = None, *, stays_away: bool = False) -> bool:
        """Takes a replica out of use; once its sessions have ended it is replaced, or stopped.

        Returns whether it was in use. Raises KeyError for an unknown name.
        """
        fleet = sv.draining(self.fleet, name, stays_away=stays_away)
        if fleet is self.fleet:
            return False
        limit_s = self._settings.drain_timeout_s if timeout_s is None else timeout_s
        self._note(name, f"drains: its sessions have {limit_s:g} s")
        self._apply(fleet)
        self._spawn(self._drain(name, limit_s))
        return True

    def restore(
        self,
        fleet: sv.Fleet,
        addresses: Mapping[str, WorkerAddress | RouterStarted],
        view: ClusterView,
    ) -> None:
        """Sets what an earlier controller has left; call it before `run`."""
        kept = {name for name, replica in fleet.items() if replica.is_alive}
        self.fleet = fleet
        self.addresses = {name: each for name, each in addresses.items() if name in kept}
        self.view = view
        self._note("controller", f"has taken over; {len(kept)} of {len(fleet)} go on")

    # -- the loop ----------------------------------------------------------

    async def run(self) -> None:
        """Supervises until it is cancelled; leaves the actors as they are."""
        async with self._group:
            self._resume()
            self._spawn(self._watch_nodes())
            while True:
                self._changed.clear()
                self._begin_actions()
                await self._sleep_until_due()

    def _resume(self) -> None:
        """Continues with what was restored; a new fleet has nothing of that."""
        for name, replica in self.fleet.items():
            if replica.phase is sv.Phase.STARTING:
                self._spawn(self._start(name))
            if not replica.is_alive:
                continue
            self._spawn(self._watch(name, replica.incarnation))
            if replica.role == "router":
                self._spawn(self._push_view(name, self.view))
            if replica.phase is sv.Phase.DRAINING:
                self._spawn(self._drain(name, self._settings.drain_timeout_s))

    def _begin_actions(self) -> None:
        for action in sv.plan(self.fleet, self._now_s()):
            self.fleet = sv.begun(self.fleet, action)
            match action:
                case sv.Create(name):
                    self._spawn(self._create(name))
                case sv.Clean(name):
                    self._spawn(self._clean(name))
                case sv.Connect(decode, prefill):
                    self._spawn(self._connect(decode, prefill))

    async def _sleep_until_due(self) -> None:
        due_s = sv.next_due_s(self.fleet)
        wait_s = None if due_s is None else max(0.0, due_s - self._now_s())
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception:  # the loop must outlive a bug in one action
                _log.exception("controller_action_failed")

        task = self._group.create_task(guarded())
        task.add_done_callback(lambda _: work.close())  # cancelled before its first step

    # -- actions -----------------------------------------------------------

    async def _create(self, name: str) -> None:
        incarnation = self.fleet[name].incarnation
        self._note(name, "starting" if incarnation == 1 else f"starting again ({incarnation})")
        await self._start(name)

    async def _start(self, name: str) -> None:
        incarnation = self.fleet[name].incarnation
        self._began_s[name] = self._now_s()
        outcome = await self._hosts.create(name, incarnation, partial(self._waits, name))
        if outcome.address is None:
            self._note(name, f"failed to start: {outcome.error}")
            failed = sv.failed(self.fleet, name, outcome.error, permanent=outcome.permanent)
            self._apply(failed)
            return
        self.addresses[name] = outcome.address
        self._note(name, f"started in {self._now_s() - self._began_s[name]:.1f} s")
        self._apply(sv.started(self.fleet, name))
        self._spawn(self._watch(name, incarnation))
        if outcome.address.role == "router":
            self._spawn(self._push_view(name, self.view))

    def _waits(self, name: str, missing: str) -> None:
        if missing:
            self._began_s[name] = self._now_s()
        fleet = sv.waits_for_room(self.fleet, name, missing)
        if fleet is not self.fleet:
            self._note(name, f"waits: {missing}" if missing else "has a place now")
            self._apply(fleet)

    async def _push_view(self, router: str, view: ClusterView) -> None:
        incarnation = self.fleet[router].incarnation
        try:
            await self._hosts.push_view(router, view)
        except Exception as error:  # if it died, its watcher reports that
            _log.warning("view_not_delivered router=%s error=%s", router, error)
            return
        if self.fleet[router].incarnation == incarnation:
            self._known_views[router] = max(view.version, self._known_views.get(router, 0))
            self._note(router, f"knows {len(view.workers)} workers")

    async def _connect(self, decode: str, prefill: str) -> None:
        pair = (self.fleet[decode].incarnation, self.fleet[prefill].incarnation)
        address = self.addresses[prefill]
        assert isinstance(address, WorkerAddress)
        try:
            await self._shake_hands(decode, address)
        except Exception as error:
            await self._connection_failed(decode, prefill, pair, f"{type(error).__name__}: {error}")
            return
        if self._is_current(decode, prefill, pair):
            self._apply(sv.connected(self.fleet, decode, prefill))

    async def _shake_hands(self, decode: str, prefill: WorkerAddress) -> None:
        limit_s = self._settings.connect_timeout_s
        try:
            async with asyncio.timeout(limit_s) as deadline:
                await self._hosts.connect(decode, prefill)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise TimeoutError(f"no answer came for {limit_s:g} s") from None

    async def _connection_failed(
        self, decode: str, prefill: str, pair: tuple[int, int], error: str
    ) -> None:
        # The death of either side is the most probable reason, and may be known in a moment.
        for name in (prefill, decode):
            if self.fleet[name].is_alive and (reason := await self._probe(name, timeout_s=5.0)):
                self._died(name, self.fleet[name].incarnation, reason)
        if not self._is_current(decode, prefill, pair):
            return
        evidence = await self._gather_evidence(decode, prefill)
        if self._is_current(decode, prefill, pair):
            fleet, blamed = sv.connection_failed(self.fleet, decode, prefill, evidence, error)
            self._note(blamed, f"is replaced: {fleet[blamed].reason}")
            self._apply(fleet)

    async def _gather_evidence(self, decode: str, prefill: str) -> sv.Evidence:
        """Examines both workers; if that finds nothing, connects them with other ready ones."""
        faults = await asyncio.gather(self._examine(decode), self._examine(prefill))
        if any(faults):
            return sv.Evidence(*faults)
        connects = await asyncio.gather(
            self._connects(decode, self._another("prefill", prefill)),
            self._connects(self._another("decode", decode), prefill),
        )
        return sv.Evidence("", "", *connects)

    def _another(self, role: sv.Role, name: str) -> str | None:
        ready = (r.name for r in self.fleet.values() if r.phase is sv.Phase.ADMITTED)
        return next((n for n in ready if self.fleet[n].role == role and n != name), None)

    async def _examine(self, name: str) -> str:
        limit_s = self._settings.evidence_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._hosts.examine(name)
        except TimeoutError:
            return f"it did not say for {limit_s:g} s whether it is well"
        except Exception as error:
            return f"it cannot say whether it is well: {type(error).__name__}: {error}"

    async def _connects(self, decode: str | None, prefill: str | None) -> bool | None:
        """Returns whether the two connect; None unless both are given."""
        address = self.addresses.get(prefill or "")
        if decode is None or not isinstance(address, WorkerAddress):
            return None
        try:
            async with asyncio.timeout(self._settings.evidence_timeout_s):
                await self._hosts.connect(decode, address)
        except Exception as error:
            _log.warning("no_connection decode=%s prefill=%s error=%r", decode, prefill, error)
            return False
        return True

    def _is_current(self, decode: str, prefill: str, pair: tuple[int, int]) -> bool:
        now = (self.fleet[decode].incarnation, self.fleet[prefill].incarnation)
        return now == pair and self.fleet[decode].connecting == prefill

    async def _drain(self, name: str, timeout_s: float) -> None:
        incarnation = self.fleet[name].incarnation
        await self._until_routers_know()
        try:
            # Its successor has the same name.
            if self._is_draining(name, incarnation):
                await self._hosts.drain(name, timeout_s)
            if self._is_draining(name, incarnation):
                await self._hosts.stop(name)
        except Exception as error:  # if it died, its watcher reports that
            _log.warning("no_graceful_drain name=%s error=%r", name, error)
        if self._is_draining(name, incarnation):
            self._note(name, "has drained")
            self._apply(sv.died(self.fleet, name, "it was drained"))

    def _is_draining(self, name: str, incarnation: int) -> bool:
        replica = self.fleet[name]
        return replica.incarnation == incarnation and replica.phase is sv.Phase.DRAINING

    async def _until_routers_know(self) -> None:
        """Waits until no router sends a draining worker a new session, within limits."""
        version = self.view.version
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.view_timeout_s):
                while not self._is_known(version):
                    await self.wait_change(self.num_events)

    def _is_known(self, version: int) -> bool:
        routers = [r.name for r in self.fleet.values() if r.role == "router" and r.takes_work]
        return all(self._known_views.get(name, -1) >= version for name in routers)

    async def _clean(self, name: str) -> None:
        try:
            await self._hosts.clean(name)
        except Exception as error:
            reason = f"what is left of it does not end: {type(error).__name__}: {error}"
            _log.exception("replica_not_cleaned name=%s", name)
            self._note(name, reason)
            self._apply(sv.not_cleaned(self.fleet, name, self._now_s(), reason))
            return
        self.addresses.pop(name, None)
        self.statuses.pop(name, None)
        self._known_views.pop(name, None)
        fleet = sv.cleaned(self.fleet, name, self._now_s(), self._settings.max_start_failures)
        if fleet[name].phase is sv.Phase.GIVEN_UP:
            _log.error("replica_given_up name=%s reason=%s", name, fleet[name].reason)
            pause_s = fleet[name].not_before_s - self._now_s()
            self._note(
                name, f"is given up: {fleet[name].reason} (it is tried again in {pause_s:.0f} s)"
            )
        elif fleet[name].phase is sv.Phase.STOPPED:
            self._note(name, "is stopped, as requested")
        self._apply(fleet)

    # -- watching ----------------------------------------------------------

    async def _watch(self, name: str, incarnation: int) -> None:
        """Waits for the death of one incarnation, whichever way it is noticed."""
        watchers = {
            asyncio.ensure_future(self._hosts.wait_dead(name)),
            asyncio.ensure_future(self._check_health(name)),
        }
        try:
            done, _ = await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
            self._died(name, incarnation, done.pop().result())
        finally:
            for watcher in watchers:
                watcher.cancel()

    async def _watch_nodes(self) -> None:
        while True:
            for name in await self._hosts.leaving():
                if self.fleet[name].takes_work:
                    self._note(name, "is on a node that is about to end")
                    self.drain(name)
            await asyncio.sleep(self._settings.nodes_interval_s)

    async def _check_health(self, name: str) -> str:
        while True:
            reason = await self._probe(name, self._settings.unresponsive_after_s)
            if reason:
                return reason
            await asyncio.sleep(self._settings.health_interval_s)

    async def _probe(self, name: str, timeout_s: float) -> str | None:
        question = asyncio.ensure_future(self._hosts.status(name))
        try:
            if not await is_answered(question, Silence(timeout_s), self._now_s):
                return lost_by(Cause.UNRESPONSIVE, f"gave no answer for {timeout_s:.0f} s")
            status = question.result()
        except Exception as error:
            return f"status call failed: {error}"
        finally:
            question.cancel()
        failure = getattr(status, "policy_failure", "")
        if failure and failure != getattr(self.statuses.get(name), "policy_failure", ""):
            self._note(name, f"follows {status.policy} now: {failure}")
        self.statuses[name] = status
        if _says_it_drains(status):  # its node or pod is about to end
            self.drain(name)
        return None

    def _died(self, name: str, incarnation: int, reason: str) -> None:
        replica = self.fleet[name]
        if self._is_draining(name, incarnation):  # after SIGTERM it ends by itself
            reason = f"it ended while it drained: {reason}"
        if replica.incarnation == incarnation and replica.is_alive:
            _log.error("replica_died name=%s reason=%s", name, reason)
            self._note(name, f"died: {reason}")
            self._apply(sv.died(self.fleet, name, reason))

    # -- state -------------------------------------------------------------

    def _apply(self, fleet: sv.Fleet) -> None:
        admitted = [
            name
            for name, replica in fleet.items()
            if replica.phase is sv.Phase.ADMITTED
            and self.fleet[name].phase is not sv.Phase.ADMITTED
        ]
        self.fleet = fleet
        self._publish_view()
        for name in admitted:
            self._note(name, "is ready")
        self._changed.set()
        self._on_change()
        self._wake_listeners()

    def _publish_view(self) -> None:
        members = [self.addresses[name] for name in sv.view_members(self.fleet)]
        workers = tuple(a for a in members if isinstance(a, WorkerAddress))
        if workers == self.view.workers:
            return
        self.view = replace(self.view, version=self.view.version + 1, workers=workers)
        for name, replica in self.fleet.items():
            if replica.role == "router" and replica.is_alive:
                self._spawn(self._push_view(name, self.view))

    def _note(self, name: str, what: str) -> None:
        _log.info("replica_event name=%s event=%s", name, what)
        self._events.append(f"{name} {what}")
        self.num_events += 1
        self._wake_listeners()

    def _wake_listeners(self) -> None:
        for listener in self._listeners:
            listener.set()

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


def _says_it_drains(status: Any) -> bool:
    """Reads the status of a worker, or a router's."""
    if isinstance(status, Mapping):
        return bool(status.get("is_draining"))
    return bool(getattr(status, "is_draining", False))
