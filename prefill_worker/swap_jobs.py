"""Messages between the swap connector's scheduler half and its worker half.

Values only: they cross a process border in every step that swaps. A job holds one
session's copies in one direction; on every rank the worker finishes or fails a job
as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Direction(StrEnum):
    """The direction of a KV copy."""

    # Accelerator to host.
    OUT = "out"
    # Host to accelerator.
    IN = "in"


class CopyJob(NamedTuple):
    """Copies between KV blocks of the accelerator and slots of the offload pool, in pairs."""

    number: int
    direction: Direction
    block_ids: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepJobs:
    """The jobs of one engine step: all `outs` are copied before any of the `ins`.

    Blocks of `outs` may be overwritten by this very step, by its forward pass or by
    one of its `ins`; those of `ins` are used by later steps only.
    """

    outs: tuple[CopyJob, ...] = ()
    ins: tuple[CopyJob, ...] = ()
    # The step computes nothing, so the worker may wait for copies under way.
    is_idle: bool = False


class CopyTime(NamedTuple):
    """The duration of one batch: all jobs of one step and direction."""

    direction: Direction
    num_blocks: int
    seconds: float


@dataclass(slots=True)
class JobResults:
    """The ranks' results since they last reported, summed over ranks."""

    # Job number to the number of ranks that have finished it.
    num_ranks_done: dict[int, int] = field(default_factory=dict)
    # Job number to the reason of its failure on some rank. It may come before, and again
    # with, that rank's end of the job; a failed job counts as finished.
    failures: dict[int, str] = field(default_factory=dict)
    # By the number of a batch's first job; the slowest rank's so far.
    times: dict[int, CopyTime] = field(default_factory=dict)

    def add(self, other: JobResults) -> None:
        """Adds another rank's results of the same step, or those of a later step."""
        for number, count in other.num_ranks_done.items():
            self.num_ranks_done[number] = self.num_ranks_done.get(number, 0) + count
        self.failures |= other.failures
        keep_slowest(self.times, other.times)


def keep_slowest(times: dict[int, CopyTime], others: Mapping[int, CopyTime]) -> None:
    """Merges batch times of ranks: a batch takes as long as on the slowest of them."""
    for batch, other in others.items():
        mine = times.get(batch)
        if mine is None or other.seconds > mine.seconds:
            times[batch] = other
