"""Decides what the controller does next, from desired and actual replicas.

Pure: no Ray, no clock, no I/O. A fleet is a plain mapping of frozen replicas; every
event returns a new one. Life cycle of a replica:

                     WAITING
                        ^ no room | room
                        |         v
    MISSING -create-> STARTING -started-> RUNNING -admitted-> ADMITTED
       ^                  |                  |                   |
       |                  v                  v                   v
       |                DEAD <---- start failed, connect failed, died, drained
       '----cleaned---- CLEANING -cleaned, failed too often-> GIVEN_UP
                         | a process of it does not end: DEAD, cleaned again later
                         | cleaned after a drain that was to remove it: STOPPED

WAITING has an actor that Ray cannot place at present; that is no failure, and lasts until
a node has room for it.

GIVEN_UP is created once more after a pause that doubles each time, and at once when an
operator requests it; STOPPED only by that request. From RUNNING and ADMITTED a drain leads
to DRAINING: the process still answers and keeps its sessions, but routers do not use it.

A running decode worker is connected with every running prefill worker. A worker is
admitted once it is connected with all admitted workers of the other role, so each pair
that a router can choose has shaken hands. Admission resets the count of failed starts.

When two running workers cannot connect, both are examined, and others try to connect
with either (`Evidence`). If that is inconclusive, the newcomer is replaced; and when its
successor cannot connect with the same partner, the partner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from stream2llm.serving.launch import ReplicaRole
from stream2llm.serving.worker_spec import DrainingWorker

Role = ReplicaRole

# Waiting times between failed starts: 1, 2, 4 ... s.
MAX_BACKOFF_S = 30.0
# A process that SIGKILL does not end is stuck in a driver; it may end later.
CLEAN_AGAIN_AFTER_S = 10.0
# Pauses before a given-up replica is retried: 60, 120, 240 ... s.
FIRST_RETRY_AFTER_S = 60.0
MAX_RETRY_AFTER_S = 900.0


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


@dataclass(frozen=True, slots=True)
class Replica:
    """One router or worker that should exist."""

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
    reason: str = ""  # of the last death or failure
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
    def is_alive(self) -> bool:
        """Whether its process answers."""
        return self.takes_work or self.phase is Phase.DRAINING

    @property
    def takes_work(self) -> bool:
        """Whether routers use it, or will once it is connected."""
        return self.phase in (Phase.RUNNING, Phase.ADMITTED)


Fleet = Mapping[str, Replica]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Findings about two running workers that cannot connect."""

    # A worker's own fault, or that it does not answer; "" for a healthy one.
    decode_fault: str = ""
    prefill_fault: str = ""
    # Whether it connects with another worker; None without another one.
    decode_connects: bool | None = None
    prefill_connects: bool | None = None


@dataclass(frozen=True, slots=True)
class Create:
    """Create the actor and start what it hosts."""

    name: str


@dataclass(frozen=True, slots=True)
class Connect:
    """Make a decode worker shake hands with a prefill worker."""

    decode: str
    prefill: str


@dataclass(frozen=True, slots=True)
class Clean:
    """Kill what is left of a dead replica."""

    name: str


Action = Create | Connect | Clean


# Larger counts change nothing, and 2.0 to their power would overflow.
_MANY = 100
# The worker that others connect with ranks higher; untested is in between.
_STANDING = {False: 0, None: 1, True: 2}
_TO_CREATE = (Phase.MISSING, Phase.GIVEN_UP)


# -- decisions -------------------------------------------------------------


def plan(fleet: Fleet, now_s: float) -> tuple[Action, ...]:
    """Returns the actions that can begin now; call `begun` with each before it runs."""
    actions: list[Action] = []
    for replica in fleet.values():
        if replica.phase is Phase.DEAD and replica.not_before_s <= now_s:
            actions.append(Clean(replica.name))
        elif replica.phase in _TO_CREATE and replica.not_before_s <= now_s:
            actions.append(Create(replica.name))
        elif replica.role == "decode" and replica.takes_work and replica.connecting is None:
            actions += [Connect(replica.name, peer) for peer in _unconnected(fleet, replica)[:1]]
    return tuple(actions)


def next_due_s(fleet: Fleet) -> float | None:
    """Returns when a waiting replica may next be created or cleaned; None if none waits."""
    waits = (*_TO_CREATE, Phase.DEAD)
    waiting = [r.not_before_s for r in fleet.values() if r.phase in waits]
    return min(waiting, default=None)


def view_members(fleet: Fleet) -> tuple[str, ...]:
    """Returns the workers that routers may use."""
    return tuple(r.name for r in fleet.values() if r.phase is Phase.ADMITTED and r.role != "router")


def view_draining(fleet: Fleet, now_s: float) -> tuple[DrainingWorker, ...]:
    """Returns the workers that drain, with the seconds that are left to their sessions."""
    draining = (r for r in fleet.values() if r.phase is Phase.DRAINING and r.role != "router")
    return tuple(DrainingWorker(r.name, max(r.drain_by_s - now_s, 0.0)) for r in draining)


def is_ready(fleet: Fleet) -> bool:
    """Whether every desired replica is ready, but for those that an operator has removed."""
    wanted = (r for r in fleet.values() if r.phase is not Phase.STOPPED and not r.is_extra)
    return all(r.phase is Phase.ADMITTED for r in wanted)


def given_up(fleet: Fleet) -> tuple[Replica, ...]:
    """Returns the replicas that failed too often, and are retried at intervals only."""
    return tuple(r for r in fleet.values() if r.phase is Phase.GIVEN_UP)


def blamed_for_failed_connection(
    fleet: Fleet, decode: str, prefill: str, evidence: Evidence
) -> tuple[str, str]:
    """Returns which of two running workers that cannot connect to replace, and why."""
    names = (decode, prefill)
    faults = (evidence.decode_fault, evidence.prefill_fault)
    if bool(faults[0]) != bool(faults[1]):
        return (decode, faults[0]) if faults[0] else (prefill, faults[1])
    standing = (_STANDING[evidence.decode_connects], _STANDING[evidence.prefill_connects])
    if standing[0] != standing[1]:
        worse = names[standing.index(min(standing))]
        better = prefill if worse == decode else decode
        if max(standing) == _STANDING[True]:
            return worse, f"{better} connects with another worker"
        return worse, "it connects with no other worker either"
    newcomer, partner = names if fleet[decode].phase is not Phase.ADMITTED else names[::-1]
    if (partner, fleet[partner].incarnation) in fleet[newcomer].replaced_for:
        return partner, f"{newcomer} was replaced for it already"
    return newcomer, "it is the newcomer"


def _unconnected(fleet: Fleet, decode: Replica) -> list[str]:
    return [
        r.name
        for r in fleet.values()
        if r.role == "prefill" and r.takes_work and r.name not in decode.connected
    ]


# -- events ----------------------------------------------------------------


def new_fleet(roles: Mapping[str, Role]) -> Fleet:
    """Returns a fleet in which every replica is missing."""
    return {name: Replica(name, role) for name, role in roles.items()}


def with_extra(fleet: Fleet, name: str, role: Role) -> Fleet:
    """One replica more is wanted, for a time."""
    return _put(fleet, Replica(name, role, is_extra=True))


def without(fleet: Fleet, name: str) -> Fleet:
    """That replica is not wanted any more, and nothing of it is left."""
    return {each: replica for each, replica in fleet.items() if each != name}


def begun(fleet: Fleet, action: Action) -> Fleet:
    """An action has begun."""
    if isinstance(action, Create):
        old = fleet[action.name]
        return _put(fleet, replace(old, phase=Phase.STARTING, incarnation=old.incarnation + 1))
    if isinstance(action, Connect):
        return _put(fleet, replace(fleet[action.decode], connecting=action.prefill))
    return _put(fleet, replace(fleet[action.name], phase=Phase.CLEANING))


def waits_for_room(fleet: Fleet, name: str, missing: str) -> Fleet:
    """Ray has no place for the replica's actor, or ("" for `missing`) has one now.

    Returns the same fleet where that is known.
    """
    old = fleet[name]
    if old.phase not in (Phase.STARTING, Phase.WAITING) or old.missing_room == missing:
        return fleet
    phase = Phase.WAITING if missing else Phase.STARTING
    return _put(fleet, replace(old, phase=phase, missing_room=missing))


def started(fleet: Fleet, name: str) -> Fleet:
    """The replica answers."""
    running = replace(fleet[name], phase=Phase.RUNNING, permanent=False, missing_room="")
    return admitted(_put(fleet, running))


def connected(fleet: Fleet, decode: str, prefill: str) -> Fleet:
    """Two workers have shaken hands."""
    old = fleet[decode]
    peers = old.connected | {prefill}
    return admitted(_put(fleet, replace(old, connected=peers, connecting=None)))


def failed(fleet: Fleet, name: str, reason: str, *, permanent: bool = False) -> Fleet:
    """The replica could not be started or connected."""
    failures = fleet[name].start_failures + 1
    gone = died(fleet, name, reason)
    return _put(gone, replace(gone[name], start_failures=failures, permanent=permanent))


def connection_failed(
    fleet: Fleet, decode: str, prefill: str, evidence: Evidence, error: str
) -> tuple[Fleet, str]:
    """Two running workers cannot connect: one of them is replaced."""
    blamed, why = blamed_for_failed_connection(fleet, decode, prefill, evidence)
    partner = prefill if blamed == decode else decode
    pair = (partner, fleet[partner].incarnation)
    reason = f"{decode} cannot connect to {prefill}: {error}; {blamed} is replaced: {why}"
    gone = failed(fleet, blamed, reason)
    replaced_for = gone[blamed].replaced_for | {pair}
    return _put(gone, replace(gone[blamed], replaced_for=replaced_for)), blamed


def retried(fleet: Fleet, name: str) -> Fleet:
    """An operator requests a retry now; ignored unless the replica waits for one."""
    old = fleet[name]
    if old.phase not in (*_TO_CREATE, Phase.STOPPED):
        return fleet
    again = replace(
        old,
        phase=Phase.MISSING,
        not_before_s=0.0,
        start_failures=0,
        permanent=False,
        num_given_up=0,
        replaced_for=frozenset(),
        stays_away=False,
    )
    return _put(fleet, again)


def draining(fleet: Fleet, name: str, by_s: float, *, stays_away: bool = False) -> Fleet:
    """Routers are not to use the replica any more; with `stays_away` it gets no successor.

    Its sessions have until `by_s`. Returns the same fleet unless the replica takes work.
    """
    old = fleet[name]
    if not old.takes_work:
        return fleet
    drains = replace(old, phase=Phase.DRAINING, stays_away=stays_away, drain_by_s=by_s)
    return _put(fleet, drains)


def died(fleet: Fleet, name: str, reason: str) -> Fleet:
    """The replica has died; its connections are gone."""
    dead = replace(
        fleet[name],
        phase=Phase.DEAD,
        reason=reason,
        missing_room="",
        connected=frozenset(),
        connecting=None,
        not_before_s=0.0,
    )
    rest = {r.name: _without_peer(r, name) for r in fleet.values()}
    return admitted({**rest, name: dead})


def cleaned(fleet: Fleet, name: str, now_s: float, max_start_failures: int) -> Fleet:
    """Nothing is left of the dead replica: it may be recreated, or is given up."""
    old = fleet[name]
    if old.stays_away:
        return _put(fleet, replace(old, phase=Phase.STOPPED))
    # What has run once may run again: then no first failure is final.
    hopeless = old.permanent and not old.was_ready
    if hopeless or old.start_failures >= max_start_failures:
        pause_s = min(MAX_RETRY_AFTER_S, FIRST_RETRY_AFTER_S * 2.0**old.num_given_up)
        given_up = replace(
            old,
            phase=Phase.GIVEN_UP,
            num_given_up=min(old.num_given_up + 1, _MANY),
            not_before_s=now_s + pause_s,
        )
        return _put(fleet, given_up)
    wait_s = (
        min(MAX_BACKOFF_S, 2.0 ** (min(old.start_failures, _MANY) - 1))
        if old.start_failures
        else 0.0
    )
    return _put(fleet, replace(old, phase=Phase.MISSING, not_before_s=now_s + wait_s))


def not_cleaned(fleet: Fleet, name: str, now_s: float, reason: str) -> Fleet:
    """A process of the dead replica does not end, so it cannot be replaced yet."""
    again = replace(
        fleet[name], phase=Phase.DEAD, reason=reason, not_before_s=now_s + CLEAN_AGAIN_AFTER_S
    )
    return _put(fleet, again)


def admitted(fleet: Fleet) -> Fleet:
    """Workers that are connected with all admitted ones of the other role are admitted, in order."""
    for replica in fleet.values():
        if replica.phase is Phase.RUNNING and _knows_admitted_peers(fleet, replica):
            ready = replace(
                replica,
                phase=Phase.ADMITTED,
                was_ready=True,
                start_failures=0,
                num_given_up=0,
                replaced_for=frozenset(),
                reason="",
            )
            fleet = _put(fleet, ready)
    return fleet


def _knows_admitted_peers(fleet: Fleet, replica: Replica) -> bool:
    if replica.role == "router":
        return True
    peers = [r for r in fleet.values() if r.phase is Phase.ADMITTED and r.role != "router"]
    if replica.role == "decode":
        return all(r.name in replica.connected for r in peers if r.role == "prefill")
    return all(replica.name in r.connected for r in peers if r.role == "decode")


def _without_peer(replica: Replica, name: str) -> Replica:
    connecting = None if replica.connecting == name else replica.connecting
    return replace(replica, connected=replica.connected - {name}, connecting=connecting)


def _put(fleet: Fleet, replica: Replica) -> Fleet:
    return {**fleet, replica.name: replica}
