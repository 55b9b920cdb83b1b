"""What a controller takes over from its predecessor. Pure.

The predecessor has left two things: what it saved, which may be a moment old, and the
actors, which live on. Each actor's name says whose it is and which incarnation, so what
was not saved any more is read from the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from stream2llm.cluster import supervision as sv
from stream2llm.cluster.rollout import Rollout
from stream2llm.serving.actor.loss import Cause
from stream2llm.serving.settings.launch import RouterStarted, Started
from stream2llm.serving.settings.worker_spec import ClusterView, WorkerAddress

# The versions of one controller's views; a successor's are all higher, also than those that
# the predecessor did not save.
VIEWS_A_CONTROLLER = 1_000_000
LOST_MEANWHILE = "it died while no controller ran"
_STARTS = (sv.Phase.STARTING, sv.Phase.WAITING)
_GONE = (sv.Phase.DEAD, sv.Phase.CLEANING)


@dataclass(frozen=True, slots=True)
class ActorName:
    """The name of a router's, gateway's or worker's actor in Ray."""

    cluster_id: str
    replica: str
    incarnation: int

    def __str__(self) -> str:
        return f"{self.cluster_id}/{self.replica}/{self.incarnation}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads a name; None for an actor that is none of ours."""
        cluster_id, _, rest = text.partition("/")
        replica, _, incarnation = rest.partition("/")
        if not (cluster_id and replica and incarnation.isdecimal()):
            return None
        return cls(cluster_id, replica, int(incarnation))


def newest(names: Iterable[str], cluster_id: str) -> dict[str, ActorName]:
    """Returns the newest actor of each replica of a cluster."""
    found: dict[str, ActorName] = {}
    for name in filter(None, map(ActorName.parse, names)):
        known = found.get(name.replica)
        if name.cluster_id == cluster_id and (
            known is None or known.incarnation < name.incarnation
        ):
            found[name.replica] = name
    return found


@dataclass(frozen=True, slots=True)
class LastEnd:
    """Why the last incarnation of a replica ended, or could not start."""

    reason: str = ""
    # None after a drain.
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class SavedState:
    """What a controller saves for its successor."""

    fleet: sv.Fleet
    addresses: Mapping[str, Started] = field(default_factory=dict)
    policy: str = ""
    # By replica: its last end, kept while the successor runs.
    last_ends: Mapping[str, LastEnd] = field(default_factory=dict)
    # Number of controllers that the cluster has had.
    num_controllers: int = 0
    # The last rolling restart, under way or over.
    rollout: Rollout | None = None
    # host:port that clients and Prometheus know.
    http_address: str = ""
    # The same moment on the event loop's clock, which the fleet's times refer to, and on the
    # wall's, which all nodes have.
    loop_s: float = 0.0
    wall_s: float = 0.0

    def at(self, loop_s: float, wall_s: float) -> Self:
        """Returns the state with its times on the clock of another event loop."""
        shift_s = (loop_s - self.loop_s) - (wall_s - self.wall_s)
        fleet = {
            name: replace(
                each,
                not_before_s=each.not_before_s and each.not_before_s + shift_s,
                drain_by_s=each.drain_by_s and each.drain_by_s + shift_s,
            )
            for name, each in self.fleet.items()
        }
        rollout = self.rollout
        if rollout is not None:
            rollout = replace(rollout, turn_began_s=rollout.turn_began_s + shift_s)
        return replace(self, fleet=fleet, rollout=rollout, loop_s=loop_s, wall_s=wall_s)


def restored(
    roles: Mapping[str, sv.Role], saved: SavedState, living: Mapping[str, int]
) -> sv.Fleet:
    """Returns the fleet to go on with; `living` has the incarnation of each living actor.

    What is alive keeps its phase, its connections and its counts. A start that was under way
    goes on. What died meanwhile is dead, and is replaced as always.
    """
    before = {n: saved.fleet.get(n) or sv.Replica(n, role) for n, role in roles.items()}
    before |= {n: replica for n, replica in saved.fleet.items() if replica.is_extra}
    fleet = {
        name: _found(each, living.get(name), has_address=name in saved.addresses)
        for name, each in before.items()
    }
    still = {n for n, r in fleet.items() if r.is_alive and before[n].is_alive}
    return sv.admitted({n: _connected_with(r, still) for n, r in fleet.items()})


def _found(old: sv.Replica, living: int | None, *, has_address: bool) -> sv.Replica:
    """One replica, by what was saved and the incarnation of its actor, if there is one."""
    if living is not None and living > old.incarnation:  # created after the last saving
        return replace(
            old, incarnation=living, phase=sv.Phase.STARTING, missing_room="", stays_away=False
        )
    is_there = living is not None and living == old.incarnation
    if old.phase in _GONE:
        return replace(old, phase=sv.Phase.DEAD, not_before_s=0.0)
    if not (old.is_alive or old.phase in _STARTS):
        return old
    if not is_there:
        lost = replace(old, phase=sv.Phase.DEAD, cause=Cause.DIED, missing_room="")
        return replace(lost, reason=LOST_MEANWHILE) if old.is_alive else lost
    # A start goes on; its outcome says the address.
    return old if old.is_alive and has_address else replace(old, phase=sv.Phase.STARTING)


def _connected_with(replica: sv.Replica, still: set[str]) -> sv.Replica:
    known = replica.connected & still if replica.name in still else frozenset()
    return replace(replica, connected=known, connecting=None)


def restored_view(fleet: sv.Fleet, saved: SavedState, num_controllers: int) -> ClusterView:
    """Returns the view that the controller of this number begins with, the first one's being 1.

    `saved` is as of now (`SavedState.at`).
    """
    members = (saved.addresses[name] for name in sv.view_members(fleet))
    workers = tuple(each for each in members if isinstance(each, WorkerAddress))
    fronts = (saved.addresses[name] for name in sv.view_routers(fleet))
    return ClusterView(
        (num_controllers - 1) * VIEWS_A_CONTROLLER,
        workers,
        draining=sv.view_draining(fleet, saved.loop_s),
        routers=tuple(each.grpc_address for each in fronts if isinstance(each, RouterStarted)),
    )
