"""What has happened to a replica: every event returns the new state of the fleet."""

from __future__ import annotations

from dataclasses import replace

from stream2llm.cluster.supervision.blame import Evidence, blamed_for_failed_connection
from stream2llm.cluster.supervision.fleet import TO_CREATE, Fleet, Phase, Replica, put
from stream2llm.cluster.supervision.planning import Action, Connect, Create
from stream2llm.serving.actor.loss import Cause, Loss

# Waiting times between failed starts: 1, 2, 4 ... s.
MAX_BACKOFF_S = 30.0
# A process that SIGKILL does not end is stuck in a driver; it may end later.
CLEAN_AGAIN_AFTER_S = 10.0
# Pauses before a given-up replica is retried: 60, 120, 240 ... s.
FIRST_RETRY_AFTER_S = 60.0
MAX_RETRY_AFTER_S = 900.0
# Larger counts change nothing, and 2.0 to their power would overflow.
_MANY = 100


def begun(fleet: Fleet, action: Action) -> Fleet:
    """An action has begun."""
    if isinstance(action, Create):
        old = fleet[action.name]
        return put(fleet, replace(old, phase=Phase.STARTING, incarnation=old.incarnation + 1))
    if isinstance(action, Connect):
        return put(fleet, replace(fleet[action.decode], connecting=action.prefill))
    return put(fleet, replace(fleet[action.name], phase=Phase.CLEANING))


def waits_for_room(fleet: Fleet, name: str, missing: str) -> Fleet:
    """Ray has no place for the replica's actor, or ("" for `missing`) has one now.

    Returns the same fleet where that is known.
    """
    old = fleet[name]
    if old.phase not in (Phase.STARTING, Phase.WAITING) or old.missing_room == missing:
        return fleet
    phase = Phase.WAITING if missing else Phase.STARTING
    return put(fleet, replace(old, phase=phase, missing_room=missing))


def started(fleet: Fleet, name: str) -> Fleet:
    """The replica answers."""
    running = replace(fleet[name], phase=Phase.RUNNING, permanent=False, missing_room="")
    return admitted(put(fleet, running))


def connected(fleet: Fleet, decode: str, prefill: str) -> Fleet:
    """Two workers have shaken hands."""
    old = fleet[decode]
    peers = old.connected | {prefill}
    return admitted(put(fleet, replace(old, connected=peers, connecting=None)))


def failed(fleet: Fleet, name: str, reason: str, *, permanent: bool = False) -> Fleet:
    """The replica could not be started or connected."""
    failures = fleet[name].start_failures + 1
    gone = died(fleet, name, Loss(Cause.START_FAILED, reason))
    return put(gone, replace(gone[name], start_failures=failures, permanent=permanent))


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
    return put(gone, replace(gone[blamed], replaced_for=replaced_for)), blamed


def retried(fleet: Fleet, name: str) -> Fleet:
    """An operator requests a retry now; ignored unless the replica waits for one."""
    old = fleet[name]
    if old.phase not in (*TO_CREATE, Phase.STOPPED):
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
    return put(fleet, again)


def draining(fleet: Fleet, name: str, by_s: float, *, stays_away: bool = False) -> Fleet:
    """Routers are not to use the replica any more; with `stays_away` it gets no successor.

    Its sessions have until `by_s`. Returns the same fleet unless the replica takes work.
    """
    old = fleet[name]
    if not old.takes_work:
        return fleet
    drains = replace(old, phase=Phase.DRAINING, stays_away=stays_away, drain_by_s=by_s)
    return put(fleet, drains)


def died(fleet: Fleet, name: str, loss: Loss) -> Fleet:
    """The replica is lost."""
    return _ended(fleet, name, loss.reason, loss.cause)


def drained(fleet: Fleet, name: str) -> Fleet:
    """The replica's sessions have ended, and it was stopped: no loss."""
    return _ended(fleet, name, "it was drained", None)


def _ended(fleet: Fleet, name: str, reason: str, cause: Cause | None) -> Fleet:
    """Its process is gone, and so are its connections."""
    dead = replace(
        fleet[name],
        phase=Phase.DEAD,
        reason=reason,
        cause=cause,
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
        return put(fleet, replace(old, phase=Phase.STOPPED))
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
        return put(fleet, given_up)
    wait_s = (
        min(MAX_BACKOFF_S, 2.0 ** (min(old.start_failures, _MANY) - 1))
        if old.start_failures
        else 0.0
    )
    return put(fleet, replace(old, phase=Phase.MISSING, not_before_s=now_s + wait_s))


def not_cleaned(fleet: Fleet, name: str, now_s: float, reason: str) -> Fleet:
    """A process of the dead replica does not end, so it cannot be replaced yet."""
    again = replace(
        fleet[name], phase=Phase.DEAD, reason=reason, not_before_s=now_s + CLEAN_AGAIN_AFTER_S
    )
    return put(fleet, again)


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
                cause=None,
            )
            fleet = put(fleet, ready)
    return fleet


def _knows_admitted_peers(fleet: Fleet, replica: Replica) -> bool:
    if replica.role not in ("prefill", "decode"):
        return True
    peers = [r for r in fleet.values() if r.phase is Phase.ADMITTED and r.is_worker]
    if replica.role == "decode":
        return all(r.name in replica.connected for r in peers if r.role == "prefill")
    return all(replica.name in r.connected for r in peers if r.role == "decode")


def _without_peer(replica: Replica, name: str) -> Replica:
    connecting = None if replica.connecting == name else replica.connecting
    return replace(replica, connected=replica.connected - {name}, connecting=connecting)
