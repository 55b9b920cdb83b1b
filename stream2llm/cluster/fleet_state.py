"""The present fleet, with what is known of its members; who changes it tells it here."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from stream2llm.cluster import supervision as sv
from stream2llm.serving.actor.loss import Loss
from stream2llm.serving.actor.replica_status import ReplicaStatus
from stream2llm.serving.settings.launch import Started

EVENTS_KEPT = 1000
_log = logging.getLogger(__name__)


class EventLog:
    """Counts events, keeps the newest, and wakes who waits for one."""

    def __init__(self) -> None:
        self.num_events = 0
        self._kept: deque[str] = deque(maxlen=EVENTS_KEPT)
        self._listeners: set[asyncio.Event] = set()

    def add(self, name: str, what: str) -> None:
        """Adds what has happened to a replica."""
        _log.info("replica_event name=%s event=%s", name, what)
        self._kept.append(f"{name} {what}")
        self.num_events += 1
        for listener in self._listeners:
            listener.set()

    def since(self, seen: int) -> list[str]:
        """Returns the events after the first `seen`, as far as they are kept."""
        seen = seen if seen <= self.num_events else 0  # of an earlier controller
        new = min(self.num_events - seen, len(self._kept))
        return list(self._kept)[len(self._kept) - new :] if new > 0 else []

    async def wait(self, seen: int) -> None:
        """Returns once there are more than `seen` events, or fewer: others were an earlier controller's."""
        listener = asyncio.Event()
        self._listeners.add(listener)
        try:
            while self.num_events == seen:
                listener.clear()
                await listener.wait()
        finally:
            self._listeners.discard(listener)


class FleetState:
    """Owns the fleet, the addresses, the last statuses and the events."""

    def __init__(self, roles: Mapping[str, sv.Role]) -> None:
        self.fleet = sv.new_fleet(roles)
        self.addresses: dict[str, Started] = {}
        self.statuses: dict[str, ReplicaStatus] = {}
        self.events = EventLog()
        self._observers: list[Callable[[], None]] = []

    def observe(self, on_change: Callable[[], None]) -> None:
        """Calls `on_change` after each change of the fleet, in the order of these calls."""
        self._observers.append(on_change)

    def restore(self, fleet: sv.Fleet, addresses: Mapping[str, Started]) -> None:
        """Sets what an earlier controller has left, unobserved."""
        kept = {name for name, replica in fleet.items() if replica.is_alive}
        self.fleet = fleet
        self.addresses = {name: each for name, each in addresses.items() if name in kept}
        text = f"has taken over; {len(kept)} of {len(fleet)} go on"
        self.events.add("controller", text)

    def begin(self, action: sv.Action) -> None:
        """An action begins, which its own outcome will announce."""
        self.fleet = sv.begun(self.fleet, action)

    def apply(self, fleet: sv.Fleet) -> None:
        """Sets the fleet; what became ready is an event."""
        before, self.fleet = self.fleet, fleet
        for observer in self._observers:
            observer()
        for name, replica in fleet.items():
            is_ready = replica.phase is sv.Phase.ADMITTED
            was_ready = name in before and before[name].phase is sv.Phase.ADMITTED
            if is_ready and not was_ready:
                self.events.add(name, "is ready")

    def died(self, name: str, incarnation: int, loss: Loss) -> None:
        """An incarnation is lost; ignored unless it is the present one, and lived."""
        if self.is_draining(name, incarnation):  # after SIGTERM it ends by itself
            loss = replace(loss, reason=f"it ended while it drained: {loss.reason}")
        if self.is_present(name, incarnation) and self.fleet[name].is_alive:
            _log.error("replica_died name=%s cause=%s reason=%s", name, loss.cause, loss.reason)
            self.events.add(name, f"{loss.cause}: {loss.reason}")
            self.apply(sv.died(self.fleet, name, loss))

    def is_draining(self, name: str, incarnation: int) -> bool:
        """Whether this incarnation is the present one, and drains."""
        is_present = self.is_present(name, incarnation)
        return is_present and self.fleet[name].phase is sv.Phase.DRAINING

    def is_present(self, name: str, incarnation: int) -> bool:
        """Whether the replica exists, and this is its present incarnation."""
        return name in self.fleet and self.fleet[name].incarnation == incarnation

    def forget(self, name: str) -> None:
        """Nothing is left of the replica's last incarnation."""
        self.addresses.pop(name, None)
        self.statuses.pop(name, None)


def loop_now_s() -> float:
    """The event loop's time, which the fleet's times refer to."""
    return asyncio.get_running_loop().time()
