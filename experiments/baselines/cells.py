"""What is run: cells, systems, repetitions, their order and about how long. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from stream2llm.workload.traces.format import Shape

Comparison = Literal["engine", "whole"]
LoadName = Literal["light", "heavy", "pressure"]

# What everybody does, the best one can do without us, vLLM's own streaming.
NON_STREAMING, WARMED, STREAMED = "vllm non-streaming", "vllm warmed", "vllm streaming"
OURS = "stream2llm"
STOCK: Final = (NON_STREAMING, WARMED, STREAMED)
SHAPES: Final[tuple[Shape, ...]] = ("crawler", "anns")


@dataclass(frozen=True, slots=True)
class Load:
    """How a trace is offered."""

    name: LoadName
    # Share of the measured prefill rate.
    share: float
    # On the gaps between chunks.
    gap_factor: float = 1.0


LOADS: Final = (Load("light", 0.3), Load("heavy", 0.8), Load("pressure", 0.8, 10.0))
HEAVY, PRESSURE = LOADS[1], LOADS[2]
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


def ours(policy: str) -> str:
    """The name of our system under a policy."""
    return f"{OURS} {policy}"


def policy_of(system: str) -> str | None:
    """The policy that such a name means; None for a baseline."""
    owner, _, policy = system.partition(" ")
    return policy if owner == OURS else None


def systems_of(cell: Cell, policies: Sequence[str]) -> tuple[str, ...]:
    """Who takes part. vLLM's streaming input appends only."""
    baselines = [NON_STREAMING, WARMED]
    if cell.shape == "crawler":
        baselines.append(STREAMED)
    return (*baselines, *(ours(policy) for policy in policies))


def cells_of(
    comparison: Comparison, shape: Shape, names: Sequence[LoadName] = LOAD_NAMES
) -> tuple[Cell, ...]:
    """All loads of these names, engine against engine; heavy load alone for whole systems."""
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
