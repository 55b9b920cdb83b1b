"""The processes of a running cluster, by the part of it that they are. Linux, this machine only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from stream2llm.serving.system.processes import OwnedProcess, owned_processes


class Kind(StrEnum):
    """The part that a process plays in a router, worker or controller; its title shows it."""

    ACTOR = "actor"
    ENGINE_CORE = "EngineCore"
    # A rank of an engine that has processes for the model (vLLM's executor "mp").
    RANK = "Worker"


@dataclass(frozen=True, slots=True)
class Part:
    """One process."""

    # For instance "prefill-0", or "controller".
    replica: str
    incarnation: int
    kind: Kind
    process: OwnedProcess

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.replica}/{self.incarnation} {self.kind}"


def parts_of(processes: Iterable[OwnedProcess]) -> list[Part]:
    """The processes that are parts, in an order that numbers of processes do not decide.

    Python's and Ray's helpers are none.
    """
    found = [part for process in processes if (part := _part_of(process)) is not None]
    return sorted(found, key=lambda part: (part.replica, part.kind, part.process.command))


def _part_of(process: OwnedProcess) -> Part | None:
    _, replica, incarnation, *_ = (*process.owner.split("/"), "", "")
    kind = kind_of(process.command)
    if kind is None or not incarnation.isdecimal() or replica in ("", "ray"):
        return None
    return Part(replica, int(incarnation), kind, process)


def kind_of(command: str) -> Kind | None:
    """Reads a command line, which Ray and vLLM have made a title; None for no part."""
    if command.startswith("ray::"):
        return Kind.ACTOR
    if command.startswith("VLLM::EngineCore"):
        return Kind.ENGINE_CORE
    return Kind.RANK if command.startswith("VLLM::Worker") else None


def living_parts(cluster_id: str) -> list[Part]:
    """The parts that a cluster has at this moment."""
    return parts_of(owned_processes(f"{cluster_id}/"))
