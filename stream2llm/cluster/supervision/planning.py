"""What to do next, from the state of the fleet."""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.cluster.supervision.fleet import TO_CREATE, Fleet, Phase, Replica


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


def plan(fleet: Fleet, now_s: float) -> tuple[Action, ...]:
    """Returns the actions that can begin now; call `begun` with each before it runs."""
    actions: list[Action] = []
    for replica in fleet.values():
        if replica.phase is Phase.DEAD and replica.not_before_s <= now_s:
            actions.append(Clean(replica.name))
        elif replica.phase in TO_CREATE and replica.not_before_s <= now_s:
            actions.append(Create(replica.name))
        elif replica.role == "decode" and replica.takes_work and replica.connecting is None:
            actions += [Connect(replica.name, peer) for peer in _unconnected(fleet, replica)[:1]]
    return tuple(actions)


def next_due_s(fleet: Fleet) -> float | None:
    """Returns when a waiting replica may next be created or cleaned; None if none waits."""
    waits = (*TO_CREATE, Phase.DEAD)
    waiting = [r.not_before_s for r in fleet.values() if r.phase in waits]
    return min(waiting, default=None)


def _unconnected(fleet: Fleet, decode: Replica) -> list[str]:
    return [
        r.name
        for r in fleet.values()
        if r.role == "prefill" and r.takes_work and r.name not in decode.connected
    ]
