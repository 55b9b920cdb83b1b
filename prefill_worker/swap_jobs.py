"""What the scheduler's half of the swap connector tells the worker's half, and what comes back.

Values only: they cross a process border in every step that swaps. A job is one
session's copies one way; the worker finishes a job as a whole or fails it as a
whole, on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Direction(StrEnum):
    """Which way KV is copied."""

    # Accelerator to host.
    OUT = "out"
    # Host to accelerator.
    IN = "in"


class CopyJob(NamedTuple):
    """Copies between KV blocks of the accelerator and slots of the CPU KV offload pool, pair by pair."""

    number: int
    direction: Direction
    block_ids: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepJobs:
    """The jobs of one engine step: all `outs` are copied before any of the `ins`.

    Blocks of `outs` may be overwritten by this very step, by its forward pass or
    by one of its `ins`; those of `ins` are used by later steps only.
    """

    outs: tuple[CopyJob, ...] = ()
    ins: tuple[CopyJob, ...] = ()
    # The step computes nothing: whoever has work under way may as well wait for it.
    is_idle: bool = False


class CopyTime(NamedTuple):
    """What one batch of copies took; all jobs of a step and direction are one batch."""

    direction: Direction
    num_blocks: int
    seconds: float


@dataclass(slots=True)
class JobResults:
    """What the ranks have finished since they last reported; ranks are added up."""

    # Job number to how many ranks have finished it.
    num_ranks_done: dict[int, int] = field(default_factory=dict)
    # Job number to why it failed on some rank; may come before, and again with, the
    # rank's being done, as which a failure counts.
    failures: dict[int, str] = field(default_factory=dict)
    # By the number of a batch's first job; of the slowest rank so far.
    times: dict[int, CopyTime] = field(default_factory=dict)

    def add(self, other: JobResults) -> None:
        """Takes another rank's results of the same step, or those of a later step."""
        for number, count in other.num_ranks_done.items():
            self.num_ranks_done[number] = self.num_ranks_done.get(number, 0) + count
        self.failures |= other.failures
        keep_slowest(self.times, other.times)


def keep_slowest(times: dict[int, CopyTime], others: Mapping[int, CopyTime]) -> None:
    """Ranks copy a batch at the same time: it takes as long as the slowest of them."""
    for batch, other in others.items():
        mine = times.get(batch)
        if mine is None or other.seconds > mine.seconds:
            times[batch] = other
