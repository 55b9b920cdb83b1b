"""Decides the steps of a rolling restart: which replica is replaced next, and when. Pure.

    RUNNING -> the turn of each replica, workers before routers:
                 all others are ready and known to all routers
                   -> the only worker of its role gets a stand-in first, where a node has room
                   -> it is drained -> its successor is ready: the next one's turn
            -> DONE: all are replaced
            -> FAILED: one does not come up, or takes too long; the rest is left as it is
            -> STOPPED: by an operator

A stand-in is one more replica of the same configuration, which leaves again when the
successor is ready.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from stream2llm.cluster.supervision import Fleet, Phase, Replica, Role

_STAND_IN = "-stand-in"
# Workers before routers and gateways: one of those that is replaced ends streams, which go on
# elsewhere only where their client does that.
_ORDER: tuple[Role, ...] = ("prefill", "decode", "mixed", "router", "gateway")
# Phases in which nothing of a stand-in is left, or was there.
_GONE = (Phase.STOPPED, Phase.GIVEN_UP, Phase.MISSING)


class State(StrEnum):
    """How far a rolling restart is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rolling restart; times are seconds of the event loop's clock."""

    # What is replaced, in order, with the incarnation that each had.
    before: Mapping[str, int]
    # What open sessions have at each; None: as configured.
    drain_s: float | None
    # Maximum seconds of one replica's turn.
    limit_s: float
    # Whose turn it is, and since when.
    turn: str = ""
    turn_began_s: float = 0.0
    # Workers that get no stand-in: what every node lacks for it.
    no_room: Mapping[str, str] | None = None
    state: State = State.RUNNING
    # Why it failed, if it did.
    reason: str = ""


# -- steps -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done before something changes."""


@dataclass(frozen=True, slots=True)
class FindRoom:
    """Find out whether a node has room for a stand-in of this worker."""

    name: str


@dataclass(frozen=True, slots=True)
class Add:
    """Create the stand-in of this name."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Drain:
    """Drain this replica; a stand-in gets no successor."""

    name: str
    stays_away: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """The stand-in of this name is gone."""

    name: str


@dataclass(frozen=True, slots=True)
class End:
    """The rolling restart has ended."""

    state: State
    reason: str = ""


Step = Wait | FindRoom | Add | Drain | Forget | End


# -- decisions -------------------------------------------------------------


def begun(
    fleet: Fleet, names: Iterable[str], drain_s: float | None, limit_s: float, now_s: float
) -> Rollout:
    """Returns a rolling restart of these replicas, all for none; those that are removed stay so."""
    chosen = set(names) or set(fleet)
    wanted = (r for r in fleet.values() if r.phase is not Phase.STOPPED and not r.is_extra)
    listed = sorted(wanted, key=lambda replica: _ORDER.index(replica.role))
    before = {r.name: r.incarnation for r in listed if r.name in chosen}
    return turned(Rollout(before, drain_s, limit_s), fleet, now_s)


def turned(rollout: Rollout, fleet: Fleet, now_s: float) -> Rollout:
    """Returns it with the replica whose turn it is now."""
    turn = next(iter(left(rollout, fleet)), "")
    return rollout if turn == rollout.turn else replace(rollout, turn=turn, turn_began_s=now_s)


def left(rollout: Rollout, fleet: Fleet) -> list[str]:
    """Returns those that are not replaced yet, in order."""
    return [name for name in rollout.before if not _is_replaced(rollout, fleet, name)]


def due_s(rollout: Rollout | None) -> float | None:
    """Returns when the present turn has taken too long; None without one."""
    is_running = rollout is not None and rollout.state is State.RUNNING
    return rollout.turn_began_s + rollout.limit_s if is_running and rollout else None


def next_step(rollout: Rollout, fleet: Fleet, *, is_ready: bool, now_s: float) -> Step:
    """Returns what to do now; call it again after each step, with the `turned` rollout.

    `is_ready`: every replica is ready, and every router knows of it.
    """
    for extra in fleet.values():
        if extra.is_extra and (step := _end_of_extra(rollout, fleet, extra, is_ready)):
            return step
    if rollout.state is not State.RUNNING:
        return Wait()
    if not rollout.turn:
        return End(State.DONE) if is_ready else Wait()
    if reason := _failure(rollout, fleet, now_s):
        return End(State.FAILED, reason)
    replica = fleet[rollout.turn]
    is_old = replica.incarnation == rollout.before[replica.name]
    if not (is_ready and is_old and replica.phase is Phase.ADMITTED):
        return Wait()
    return _replacing(rollout, fleet, replica)


def stand_in_of(name: str) -> str:
    """Returns the name of a worker's stand-in."""
    return name + _STAND_IN


def whom(stand_in: str) -> str:
    """Returns the name of the worker that a stand-in stands for; any other name as it is."""
    return stand_in.removesuffix(_STAND_IN)


def _is_replaced(rollout: Rollout, fleet: Fleet, name: str) -> bool:
    replica = fleet.get(name)
    if replica is None or replica.phase is Phase.STOPPED:  # an operator has removed it
        return True
    return replica.incarnation > rollout.before[name] and replica.phase is Phase.ADMITTED


def _end_of_extra(rollout: Rollout, fleet: Fleet, extra: Replica, is_ready: bool) -> Step | None:
    """What becomes of a stand-in; None while it is needed."""
    is_over = rollout.state is not State.RUNNING
    if not is_over and whom(extra.name) == rollout.turn:
        return None
    if extra.phase in _GONE:
        return Forget(extra.name)
    base = fleet.get(whom(extra.name))
    # Where the successor did not come up, the stand-in is all that there is of its role.
    is_needed = base is not None and base.phase not in (Phase.ADMITTED, Phase.STOPPED)
    if extra.takes_work and not is_needed and (is_ready or is_over):
        return Drain(extra.name, stays_away=True)
    return Wait()


def _failure(rollout: Rollout, fleet: Fleet, now_s: float) -> str:
    for each in fleet.values():
        if each.phase is Phase.GIVEN_UP:
            return f"{each.name} does not come up: {each.reason}"
    if now_s - rollout.turn_began_s < rollout.limit_s:
        return ""
    late = [r for r in fleet.values() if r.phase not in (Phase.ADMITTED, Phase.STOPPED)]
    whose = ", ".join(f"{r.name} is {shown(r)}" for r in late) or "routers do not know of it"
    return f"{rollout.turn} was not replaced within {rollout.limit_s:g} s: {whose}"


def shown(replica: Replica) -> str:
    """Returns its phase in words, and why it is not ready where that is known."""
    phase = replica.phase.value.replace("_", " ")
    why = replica.missing_room or replica.reason
    return f"{phase}: {why}" if why and replica.phase is not Phase.ADMITTED else phase


def _replacing(rollout: Rollout, fleet: Fleet, replica: Replica) -> Step:
    """All are ready, and it is this one's turn."""
    drain = Drain(replica.name)
    others = (r for r in fleet.values() if r.role == replica.role and r.name != replica.name)
    if not replica.is_worker or any(r.takes_work and not r.is_extra for r in others):
        return drain
    stand_in = fleet.get(stand_in_of(replica.name))
    if stand_in is not None:
        return drain if stand_in.phase is Phase.ADMITTED else Wait()
    missing = (rollout.no_room or {}).get(replica.name)
    if missing is None:
        return FindRoom(replica.name)
    return drain if missing else Add(stand_in_of(replica.name), replica.role)
