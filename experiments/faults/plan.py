"""Plans which faults come when; the seed decides everything."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.faults.parts import Part

# Share of all faults; the others stop the process for a while.
KILLED_SHARE = 0.6
# Shorter stops than what is found as a hang, and longer ones.
SHORTEST_STOP_S, LONGEST_STOP_S = 2.0, 40.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One signal to one process, in seconds after the beginning of the load."""

    at_s: float
    # Which of the processes that live then, as a share of their list: 0 to 1.
    choice: float
    # Until SIGCONT; None: SIGKILL.
    stopped_s: float | None


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that has happened."""

    # After the beginning of the load.
    at_s: float
    replica: str
    incarnation: int
    kind: str
    # None: killed.
    stopped_s: float | None

    @property
    def line(self) -> str:
        """For people."""
        how = "killed" if self.stopped_s is None else f"stopped for {self.stopped_s:.0f} s"
        return f"{self.replica}/{self.incarnation} {self.kind} {how}"


def faults(seed: int, duration_s: float, every_s: float) -> list[Fault]:
    """One fault every `every_s` until `duration_s`, the first after `every_s`."""
    rng = random.Random(f"faults/{seed}")
    return [_fault(number * every_s, rng) for number in range(1, int(duration_s / every_s) + 1)]


def _fault(at_s: float, rng: random.Random) -> Fault:
    choice, is_killed = rng.random(), rng.random() < KILLED_SHARE
    stopped_s = rng.uniform(SHORTEST_STOP_S, LONGEST_STOP_S)
    return Fault(at_s, choice, None if is_killed else stopped_s)


def victim(fault: Fault, parts: Sequence[Part]) -> Part | None:
    """The process that is struck; None when no part lives."""
    return parts[int(fault.choice * len(parts))] if parts else None
