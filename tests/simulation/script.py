"""All that a seed decides before a run: the cluster's shape, the sessions, the faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from stream2llm.cluster import supervision as sv
from stream2llm.serving.settings.router_spec import AdmissionMode
from tests.fake_workers import Brain
from tests.simulation.faults import Fault, draw_faults
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
        return cls(seed, roles, plans, tuple(faults), start_s, step_s, is_tight, admission)


def roles_of(*shape: int) -> dict[str, sv.Role]:
    """The replicas of so many routers, prefill workers and decode workers."""
    return {
        f"{role}-{index}": role
        for role, count in zip(_ROLES, shape, strict=True)
        for index in range(count)
    }
