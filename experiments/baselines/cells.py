"""The plan of runs: cells, systems, repetitions, their order, and the chosen options. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cost_profiles.decision import Mode
from stream2llm.serving.settings.worker_options import DEFAULT_POLICY, PrefillOptions
from stream2llm.workload.traces.format import Shape

if TYPE_CHECKING:
    from stream2llm.models.catalogue import PresetName

Comparison = Literal["engine", "whole", "mixed"]
LoadName = Literal["light", "heavy", "bursts", "pressure"]

# The usual way, the best one can do without us, vLLM's own streaming.
NON_STREAMING, WARMED, STREAMED = "vllm non-streaming", "vllm warmed", "vllm streaming"
OURS = "stream2llm"
# One engine that prefills and one that decodes, over vLLM's own NIXL connector; and with that cache warmed.
DISAGGREGATED, DISAGGREGATED_WARMED = "vllm disaggregated", "vllm disaggregated warmed"
REPLICATED: Final = (NON_STREAMING, WARMED, STREAMED)
STOCK: Final = (*REPLICATED, DISAGGREGATED, DISAGGREGATED_WARMED)
# Those that do nothing before the seal.
AWAITED: Final = (NON_STREAMING, DISAGGREGATED)
_MIXED = "mixed"
DEFAULT_PREEMPTION: Final = PrefillOptions().preemption
SHAPES: Final[tuple[Shape, ...]] = ("crawler", "anns")


@dataclass(frozen=True, slots=True)
class Load:
    """How a trace is offered."""

    name: LoadName
    # Share of the measured prefill rate.
    share: float
    # On the gaps between chunks.
    gap_factor: float = 1.0
    # Arrivals in bursts, as those of a code assistant (`arrivals.Phases`), instead of Poisson's.
    bursts: bool = False


LIGHT, HEAVY, BURSTS, PRESSURE = (
    *(Load("light", 0.3), Load("heavy", 0.8)),
    *(Load("bursts", 0.8, bursts=True), Load("pressure", 0.8, 10.0)),
)
LOADS: Final = (LIGHT, HEAVY, BURSTS, PRESSURE)
LOAD_NAMES: Final[tuple[LoadName, ...]] = tuple(load.name for load in LOADS)


@dataclass(frozen=True, slots=True)
class Cell:
    """Where systems are compared with each other."""

    comparison: Comparison
    shape: Shape
    load: Load

    @property
    def name(self) -> str:
        """Also the name of its trace."""
        return f"{self.comparison} {self.shape} {self.load.name}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One run: a system in a cell, in one repetition."""

    cell: Cell
    system: str
    repetition: int


def ours(policy: str, preemption: Mode = DEFAULT_PREEMPTION) -> str:
    """The name of our system under a policy, and a mode of preemption but the default one."""
    return f"{OURS} {policy}" + (f" {preemption}" if preemption != DEFAULT_PREEMPTION else "")


def mixed(policy: str) -> str:
    """The name of our system under a policy, with mixed workers."""
    return f"{ours(policy)} {_MIXED}"


def is_mixed(system: str) -> bool:
    """Whether such a name means mixed workers."""
    return policy_of(system) is not None and system.split()[-1] == _MIXED


def policy_of(system: str) -> str | None:
    """The policy that such a name means; None for a baseline."""
    owner, policy, *_ = system.split()
    return policy if owner == OURS else None


def preemption_of(system: str) -> Mode:
    """The mode of preemption that a name of our system means."""
    last = system.split()[-1]
    return next((mode for mode in Mode if mode == last), DEFAULT_PREEMPTION)


def reported_policy(policies: Sequence[str]) -> str:
    """The default policy of clusters if it ran, else the last one that ran."""
    return DEFAULT_POLICY if DEFAULT_POLICY in policies else policies[-1]


def systems_of(cell: Cell, policies: Sequence[str]) -> tuple[str, ...]:
    """Returns the systems of a cell.

    vLLM's streaming input appends only. Engines under pressure have each mode of preemption. A
    rate at which mixed workers use both cores is too much for one core that prefills.
    """
    baselines = [NON_STREAMING, WARMED]
    if cell.shape == "crawler":
        baselines.append(STREAMED)
    if cell.comparison == "mixed":
        return (*baselines, mixed(reported_policy(policies)))
    if cell.comparison == "whole":
        pairs = (DISAGGREGATED, DISAGGREGATED_WARMED)
        with_mixed = mixed(reported_policy(policies))
        return (*baselines, *pairs, *map(ours, policies), with_mixed)
    modes = tuple(Mode) if (cell.comparison, cell.load) == ("engine", PRESSURE) else ()
    by_mode = [ours(reported_policy(policies), mode) for mode in modes]
    return tuple(dict.fromkeys((*baselines, *map(ours, policies), *by_mode)))


def cells_of(
    comparison: Comparison, shape: Shape, names: Sequence[LoadName] = LOAD_NAMES
) -> tuple[Cell, ...]:
    """All loads of these names, engine against engine; heavy load alone for whole systems.

    Heavy is a share of the rate at which prefill is busy on one core ("whole"), or on both
    ("mixed").
    """
    loads = LOADS if comparison == "engine" else (HEAVY,)
    return tuple(Cell(comparison, shape, load) for load in loads if load.name in names)


def phases(
    shape: Shape, names: Sequence[LoadName] = LOAD_NAMES
) -> tuple[tuple[bool, tuple[Cell, ...]], ...]:
    """Engine against engine: whether KV memory is scarce, and the cells that are so.

    Each has engines of its own, because their memory is fixed when they start. The
    first one measures the rate, whatever its cells.
    """
    cells = cells_of("engine", shape, names)
    ample = tuple(cell for cell in cells if cell.load != PRESSURE)
    scarce = tuple(cell for cell in cells if cell.load == PRESSURE)
    return ((False, ample), (True, scarce)) if scarce else ((False, ample),)


def turns(cells: Sequence[Cell], policies: Sequence[str], repetitions: int) -> Iterator[Turn]:
    """Interleaved: those that are compared run one after the other, each repetition beginning
    with another of them, so that no system always has the same neighbour or the first place."""
    for repetition in range(1, repetitions + 1):
        for cell in cells:
            systems = systems_of(cell, policies)
            first = (repetition - 1) * len(systems) // repetitions
            for system in (*systems[first:], *systems[:first]):
                yield Turn(cell, system, repetition)


# 402 of a cell.
FULL_SESSIONS, FULL_REPETITIONS = 134, 3
QUICK_SESSIONS, QUICK_REPETITIONS = 40, 1
# With so few sessions all would be open at once: retrieval takes a quarter of the time.
QUICK_RETRIEVAL = 0.25
COMPARISONS: tuple[Comparison, ...] = ("engine", "whole", "mixed")


@dataclass(frozen=True, slots=True)
class Options:
    """All that decides what is run."""

    output: Path
    model: PresetName
    policies: tuple[str, ...]
    num_sessions: int = FULL_SESSIONS
    repetitions: int = FULL_REPETITIONS
    # On the time that retrieval takes, beside what keeps the paper's ratio to prefill.
    retrieval_factor: float = 1.0
    comparisons: tuple[Comparison, ...] = COMPARISONS
    shapes: tuple[Shape, ...] = SHAPES
    loads: tuple[LoadName, ...] = LOAD_NAMES
    # The driver's; engines that are compared one by one share the second.
    cores: tuple[int, int] = (0, 1)
