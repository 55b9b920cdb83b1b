"""All that a seed decides before a run: the cluster's shape, the sessions, the faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from stream2llm.cluster import supervision as sv
from stream2llm.serving.settings.router_spec import AdmissionMode
from tests.fake_workers import Brain
from tests.simulation.faults import Fault, Kind, draw_faults, draw_incidents, shared_nodes
from tests.simulation.sessions import Plan, draw_plan

# Routers, prefill workers, decode workers.
_SHAPES = ((1, 1, 1), (1, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2))
_ADMISSIONS: Sequence[AdmissionMode] = ("always", "warn", "refuse")
_ROLES: Sequence[sv.Role] = ("router", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class Script:
    """One run."""

    seed: int
    roles: dict[str, sv.Role]
    plans: tuple[Plan, ...]
    faults: tuple[Fault, ...]
    # How long a replica takes to start, about.
    start_s: float
    # How long an engine's step takes, at the most.
    step_s: float
    # Whether tenants have small quotas, and routers few places.
    is_tight: bool
    # What routers do with deadlines that will not hold.
    admission: AdmissionMode
    # Whether a node has room for one worker more.
    has_room: bool = True

    @classmethod
    def draw(cls, seed: int) -> Script:
        """The script of a seed."""
        random = Random(f"script {seed}")
        roles = roles_of(*random.choice(_SHAPES))
        brain = Brain()
        plans = tuple(draw_plan(random, i, brain) for i in range(random.choice((1, 2, 2, 3, 5))))
        faults = draw_faults(random, roles)
        is_tight = random.random() < 0.15
        start_s = random.choice((2.0, 20.0))
        admission = random.choice(_ADMISSIONS)
        step_s = random.choice((0.01, 0.01, 0.2))
        script = cls(seed, roles, plans, tuple(faults), start_s, step_s, is_tight, admission)
        return _with_incidents(script, Random(f"incidents {seed}"))

    def has(self, kind: Kind) -> bool:
        """Whether one of its faults is of this kind."""
        return any(fault.kind is kind for fault in self.faults)

    def node_of(self, name: str, incarnation: int) -> str:
        """Where a process of a worker runs; successors each have a node of their own."""
        nodes = shared_nodes(self.roles) if self.has(Kind.NODE_DIES) and incarnation == 1 else {}
        return nodes.get(name, name)


def _with_incidents(script: Script, random: Random) -> Script:
    """Adds what concerns the whole cluster; each addition has a generator of its own.

    So the sessions and faults of a seed stay what they were before.
    """
    faults = sorted(
        [*script.faults, *draw_incidents(random, script.roles)], key=lambda fault: fault.at_step
    )
    script = replace(script, faults=tuple(faults), has_room=random.random() < 0.7)
    if not script.has(Kind.ROLLOUT):
        return script
    # As long as the restart takes, sessions begin.
    later = 2 * script.start_s * random.random()
    plans = (replace(p, begins_at_s=p.begins_at_s * later) for p in script.plans)
    return replace(script, plans=tuple(plans))


def roles_of(*shape: int) -> dict[str, sv.Role]:
    """The replicas of so many routers, prefill workers and decode workers."""
    return {
        f"{role}-{index}": role
        for role, count in zip(_ROLES, shape, strict=True)
        for index in range(count)
    }
