"""All that a seed decides before a run: the cluster's shape, the sessions, the faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from stream2llm.cluster import supervision as sv
from stream2llm.serving.settings.router_spec import AdmissionMode
from tests.fake_workers import MAX_MODEL_LEN, NUM_BLOCKS, Brain
from tests.simulation.faults import Fault, Kind, draw_faults, draw_incidents, shared_nodes
from tests.simulation.kv import num_blocks
from tests.simulation.sessions import LONG, Plan, draw_plan

# Routers, prefill workers, decode workers.
_SHAPES = ((1, 1, 1), (1, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2))
# Where one router learns enough of one prefill worker, and what it has to compute for that.
_NARROW = ((1, 1, 1), (1, 1, 1), (1, 1, 2), (1, 2, 1))
_LONG_TOKENS = 250
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
    # Whether documents are long, and deadlines near: routers learn how fast workers are, so
    # that deadlines are forecast.
    is_long: bool = False
    # KV blocks of each worker.
    num_blocks: int = NUM_BLOCKS
    # Whether workers have no more than that, so that sessions wait for blocks, and lose them.
    is_bounded: bool = False

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
        script = _with_long_sessions(script, Random(f"long {seed}"), brain)
        script = _with_cut_prompts(script, Random(f"cut {seed}"))
        script = _with_several_answers(script, Random(f"answers {seed}"))
        script = _with_bounded_memory(script, Random(f"memory {seed}"))
        return _with_incidents(script, Random(f"incidents {seed}"))

    @property
    def traits(self) -> str:
        """What is not so in most runs."""
        marks = {
            "tight": self.is_tight,
            "long": self.is_long,
            "no room": not self.has_room,
            f"{self.num_blocks} blocks": self.is_bounded,
        }
        return "".join(f" {mark}" for mark, is_so in marks.items() if is_so)

    @property
    def chunk_tokens(self) -> int:
        """Most tokens that one step of an engine computes of one session."""
        return 64 if self.is_long else 16

    def has(self, kind: Kind) -> bool:
        """Whether one of its faults is of this kind."""
        return any(fault.kind is kind for fault in self.faults)

    def node_of(self, name: str, incarnation: int) -> str:
        """Where a process of a worker runs; successors each have a node of their own."""
        nodes = shared_nodes(self.roles) if self.has(Kind.NODE_DIES) and incarnation == 1 else {}
        return nodes.get(name, name)


def _with_incidents(script: Script, random: Random) -> Script:
    """Adds what concerns the whole cluster, half of it without other faults.

    Each addition has a generator of its own: a seed without it is the run that it was before.
    """
    incidents = draw_incidents(random, script.roles)
    others = () if incidents and random.random() < 0.5 else script.faults
    faults = sorted([*others, *incidents], key=lambda fault: fault.at_step)
    script = replace(script, faults=tuple(faults), has_room=random.random() < 0.7)
    if not script.has(Kind.ROLLOUT):
        return script
    # As long as the restart may take, sessions begin.
    takes_s = script.start_s * (len(script.roles) + 2)
    plans = (replace(p, begins_at_s=takes_s * random.random()) for p in script.plans)
    return replace(script, plans=tuple(plans))


def _with_long_sessions(script: Script, random: Random, brain: Brain) -> Script:
    """In one run of twenty another cluster and other sessions, whose deadlines are forecast."""
    if random.random() >= 0.05:
        return script
    roles = roles_of(*random.choice(_NARROW))
    early = [_near(_long_plan(random, number, brain), random, 0.5) for number in range(4)]
    late = [_near(draw_plan(random, 4 + i, brain, LONG), random, 12.0) for i in range(4)]
    return replace(
        script,
        is_long=True,
        num_blocks=num_blocks(MAX_MODEL_LEN),
        step_s=0.6,
        roles=roles,
        plans=(*early, *late),
        faults=tuple(draw_faults(random, roles)),
    )


def _long_plan(random: Random, number: int, brain: Brain) -> Plan:
    plan = draw_plan(random, number, brain, LONG)
    return plan if len(plan.context) >= _LONG_TOKENS else _long_plan(random, number, brain)


def _near(plan: Plan, random: Random, begins_s: float) -> Plan:
    """The session with a near deadline, or none, which begins within so many seconds."""
    slo_ms = random.choice((None, 1, 20, 300))
    return replace(
        plan, begins_at_s=begins_s * random.random(), ttft_slo_ms=slo_ms, leaves_after_s=None
    )


def _with_cut_prompts(script: Script, random: Random) -> Script:
    """Two in five of the one-shot prompts name how many of their tokens count."""
    cut = (replace(p, is_cut=p.one_shot and random.random() < 0.4) for p in script.plans)
    return replace(script, plans=tuple(cut))


def _with_several_answers(script: Script, random: Random) -> Script:
    """One session in six asks for two answers, or three."""
    plans = (
        replace(p, num_answers=random.choice((2, 2, 3)) if random.random() < 0.16 else 1)
        for p in script.plans
    )
    return replace(script, plans=tuple(plans))


def _with_bounded_memory(script: Script, random: Random) -> Script:
    """In one run of eight workers have room for the largest session, and little more."""
    if random.random() >= 0.12:
        return script
    most = max(num_blocks(plan.most_tokens) for plan in script.plans)
    together = (replace(plan, begins_at_s=0.1 * plan.begins_at_s) for plan in script.plans)
    return replace(
        script,
        is_bounded=True,
        num_blocks=most + random.choice((1, 1, 4, 12)),
        plans=tuple(together),
    )


def roles_of(*shape: int) -> dict[str, sv.Role]:
    """The replicas of so many routers, prefill workers and decode workers."""
    return {
        f"{role}-{index}": role
        for role, count in zip(_ROLES, shape, strict=True)
        for index in range(count)
    }
