"""Faults: which, when, at whom, drawn from the seed; and how each one is done to a world.

A fault begins between two steps of the event loop, so at any await of any task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Kind(StrEnum):
    """What can go wrong."""

    KILL = "kill"
    """SIGKILL of a whole process: of a router, worker, controller or client."""
    ENGINE_DIES = "engine_dies"
    """The engine's processes end, its actor lives."""
    ENGINE_HANGS = "engine_hangs"
    """The engine's main loop stands still, its actor lives."""
    STOP = "stop"
    """SIGSTOP of a process, and SIGCONT later."""
    PARTITION = "partition"
    """Nothing passes between two processes for a time."""
    RESET = "reset"
    """The connections between two processes break."""
    SLOW = "slow"
    """An engine's steps take far longer, for good."""
    BAD_KV = "bad_kv"
    """The next KV that is read is not what prefill has computed, or is lost on its way."""
    FAILED_START = "failed_start"
    """The process dies, and the next start fails."""
    DRAIN = "drain"
    """An operator has a replica drained and replaced."""
    FULL = "full"
    """A decode worker has no room for answers that others can take."""
    NODE_DIES = "node_dies"
    """All processes of a node end at once: a prefill and a decode worker."""
    ROLLOUT = "rollout"
    """An operator restarts the whole cluster, one replica after the other."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a run."""

    kind: Kind
    # After so many steps of the event loop since the cluster was ready.
    at_step: int
    # A replica, a node, "controller", or a session's client by its name.
    target: str
    # The other end, for faults of a connection.
    other: str = ""
    # How long it lasts, where it ends by itself; of a rolling restart, when an operator stops
    # it. 0: never.
    duration_s: float = 0.0

    def __str__(self) -> str:
        other = f" and {self.other}" if self.other else ""
        lasts = f" for {self.duration_s:.3g} s" if self.duration_s else ""
        return f"{self.kind} {self.target}{other}{lasts} at step {self.at_step}"


_OF_WORKERS = (
    *(Kind.KILL, Kind.ENGINE_DIES, Kind.ENGINE_HANGS, Kind.STOP, Kind.PARTITION),
    *(Kind.RESET, Kind.SLOW, Kind.DRAIN, Kind.FAILED_START),
)
_OF_DECODE = (Kind.BAD_KV, Kind.FULL)
_OF_ROUTERS = (Kind.KILL, Kind.STOP, Kind.PARTITION, Kind.RESET, Kind.DRAIN)
_OF_PROCESSES = (Kind.KILL, Kind.STOP)
_DURATIONS_S = (0.05, 2.0, 12.0, 25.0, 60.0)
# The steps of most sessions, and of those that wait for long.
_MOST_STEPS = (400, 900, 900, 2500)
_APART_STEPS = (10, 100, 300)
# Seconds after which an operator stops a rolling restart.
_STOPS_S = (0.0, 0.0, 0.0, 4.0, 30.0)
CONTROLLER = "controller"
CLIENT = "session-0"


def draw_faults(random: Random, roles: Mapping[str, str]) -> list[Fault]:
    """None to four; the fewer, the more often."""
    drawn: list[Fault] = []
    for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        at_step = random.randrange(random.choice(_MOST_STEPS))
        if drawn and random.random() < 0.5:  # one comes while another one is dealt with
            at_step = drawn[-1].at_step + random.randrange(random.choice(_APART_STEPS))
        drawn.append(_draw(random, roles, at_step))
    return sorted(drawn, key=lambda fault: fault.at_step)


def _draw(random: Random, roles: Mapping[str, str], at_step: int) -> Fault:
    workers = [name for name, role in roles.items() if role != "router"]
    routers = [name for name, role in roles.items() if role == "router"]
    chance = random.random()
    if chance < 0.75:
        target = random.choice(workers)
        kinds = _OF_WORKERS if chance < 0.68 or roles[target] == "prefill" else _OF_DECODE
        others = [*routers, *(each for each in workers if each != target), CONTROLLER]
    elif chance < 0.86:
        target, kinds, others = random.choice(routers), _OF_ROUTERS, [CLIENT, CONTROLLER]
    else:
        target, kinds, others = random.choice((CONTROLLER, CLIENT)), _OF_PROCESSES, []
    kind = random.choice(kinds)
    lasts = kind in (Kind.PARTITION, Kind.STOP)
    return Fault(
        kind,
        at_step,
        target,
        random.choice(others) if kind in (Kind.PARTITION, Kind.RESET) else "",
        random.choice(_DURATIONS_S) * (0.5 + random.random()) if lasts else 0.0,
    )


def draw_incidents(random: Random, roles: Mapping[str, str]) -> list[Fault]:
    """What concerns more than one replica; in one run of ten."""
    chance, at_step = random.random(), random.randrange(random.choice(_MOST_STEPS))
    if chance < 0.05:
        nodes = sorted(set(shared_nodes(roles).values()))
        return [Fault(Kind.NODE_DIES, at_step, random.choice(nodes))]
    if chance < 0.1:
        stops_s = random.choice(_STOPS_S)
        return [Fault(Kind.ROLLOUT, random.randrange(50), CONTROLLER, duration_s=stops_s)]
    return []


def shared_nodes(roles: Mapping[str, str]) -> dict[str, str]:
    """The node of each worker, where a prefill and a decode worker of one number share one."""
    workers = [name for name, role in roles.items() if role != "router"]
    return {name: f"node-{name.rpartition('-')[2]}" for name in workers}
