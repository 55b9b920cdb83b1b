"""The routers, gateways and workers that should exist, and the state of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from stream2llm.serving.actor.loss import Cause
from stream2llm.serving.settings.launch import ReplicaRole
from stream2llm.serving.settings.worker_spec import DrainingWorker

Role = ReplicaRole
WORKER_ROLES: tuple[Role, ...] = ("prefill", "decode", "mixed")


class Phase(StrEnum):
    """A replica's phase in its life cycle."""

    MISSING = "missing"
    STARTING = "starting"
    WAITING = "waiting_for_room"
    RUNNING = "running"
    ADMITTED = "ready"
    DRAINING = "draining"
    DEAD = "dead"
    CLEANING = "cleaning"
    GIVEN_UP = "given_up"
    STOPPED = "stopped"


# Waiting to be created, at once or at a certain time.
TO_CREATE = (Phase.MISSING, Phase.GIVEN_UP)


@dataclass(frozen=True, slots=True)
class Replica:
    """One router, gateway or worker that should exist."""

    name: str
    role: Role
    phase: Phase = Phase.MISSING
    # Counts creations; distinguishes late events of an earlier process from present ones.
    incarnation: int = 0
    was_ready: bool = False  # ever
    # Consecutive ones since it was last admitted.
    start_failures: int = 0
    permanent: bool = False  # a retry would fail in the same way
    not_before_s: float = 0.0
    reason: str = ""  # of the last death, failure or drain
    cause: Cause | None = None  # of the last loss; None after a drain
    missing_room: str = ""  # WAITING only: what no node has
    # Decode workers only: prefill workers that it has shaken hands with.
    connected: frozenset[str] = frozenset()
    connecting: str | None = None
    # Number of times it was given up since it was last admitted.
    num_given_up: int = 0
    # Workers, by name and incarnation, that could not connect with it when it was
    # replaced as the newcomer; since it was last admitted.
    replaced_for: frozenset[tuple[str, int]] = frozenset()
    # Not created again until an operator requests it.
    stays_away: bool = False
    # A stand-in, for a time: not among what should be there.
    is_extra: bool = False
    # DRAINING only: when what is left of its sessions is ended.
    drain_by_s: float = 0.0

    @property
    def is_worker(self) -> bool:
        """Whether it has an engine."""
        return self.role in WORKER_ROLES

    @property
    def gets_views(self) -> bool:
        """Whether it has to know who is there."""
        return not self.is_worker

    @property
    def is_alive(self) -> bool:
        """Whether its process answers."""
        return self.takes_work or self.phase is Phase.DRAINING

    @property
    def takes_work(self) -> bool:
        """Whether routers use it, or will once it is connected."""
        return self.phase in (Phase.RUNNING, Phase.ADMITTED)


Fleet = Mapping[str, Replica]


def new_fleet(roles: Mapping[str, Role]) -> Fleet:
    """Returns a fleet in which every replica is missing."""
    return {name: Replica(name, role) for name, role in roles.items()}


def put(fleet: Fleet, replica: Replica) -> Fleet:
    """Returns the fleet with one replica in another state."""
    return {**fleet, replica.name: replica}


def with_extra(fleet: Fleet, name: str, role: Role) -> Fleet:
    """Returns the fleet with one replica more, for a time."""
    return put(fleet, Replica(name, role, is_extra=True))


def without(fleet: Fleet, name: str) -> Fleet:
    """Returns the fleet without a replica of which nothing is left."""
    return {each: replica for each, replica in fleet.items() if each != name}


def view_members(fleet: Fleet) -> tuple[str, ...]:
    """Returns the workers that routers may use."""
    return tuple(r.name for r in fleet.values() if r.phase is Phase.ADMITTED and r.is_worker)


def view_draining(fleet: Fleet, now_s: float) -> tuple[DrainingWorker, ...]:
    """Returns the workers that drain, with the seconds that are left to their sessions."""
    draining = (r for r in fleet.values() if r.phase is Phase.DRAINING and r.is_worker)
    return tuple(DrainingWorker(r.name, max(r.drain_by_s - now_s, 0.0)) for r in draining)


def view_routers(fleet: Fleet) -> tuple[str, ...]:
    """Returns the routers that gateways may use; none where there is no gateway."""
    if all(r.role != "gateway" for r in fleet.values()):
        return ()
    return tuple(r.name for r in fleet.values() if r.phase is Phase.ADMITTED and r.role == "router")


def is_ready(fleet: Fleet) -> bool:
    """Whether every desired replica is ready, but for those that an operator has removed."""
    wanted = (r for r in fleet.values() if r.phase is not Phase.STOPPED and not r.is_extra)
    return all(r.phase is Phase.ADMITTED for r in wanted)


def given_up(fleet: Fleet) -> tuple[Replica, ...]:
    """Returns the replicas that failed too often, and are retried at intervals only."""
    return tuple(r for r in fleet.values() if r.phase is Phase.GIVEN_UP)
