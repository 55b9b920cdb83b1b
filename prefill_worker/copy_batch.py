"""Batches of copy jobs, for both kinds of copiers: checks, attempts, results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from prefill_worker.swap_jobs import CopyJob, CopyTime, Direction, JobResults

_log = logging.getLogger(__name__)


def split_rows(rows: torch.Tensor, views: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Splits rows [n, words of a block] into a view [n, num_parts, words] for each of `views`."""
    widths = [view.shape[1] * view.shape[2] for view in views]
    columns = rows.split(widths, dim=1)
    return [
        column.unflatten(1, view.shape[1:]) for column, view in zip(columns, views, strict=True)
    ]


def runs_of(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yields runs (first, second, length) in which both go up by one: fewer, longer copies."""
    first = second = length = 0
    for left, right in pairs:
        if length and (left, right) == (first + length, second + length):
            length += 1
            continue
        if length:
            yield first, second, length
        first, second, length = left, right, 1
    if length:
        yield first, second, length


def check_job(job: CopyJob, num_blocks: int, num_slots: int) -> None:
    """Raises ValueError for a job outside the memory, which would be fatal on a GPU."""
    if len(job.block_ids) != len(job.slots):
        raise ValueError(f"{len(job.block_ids)} blocks, but {len(job.slots)} slots")
    for name, numbers, end in (
        ("block", job.block_ids, num_blocks),
        ("slot", job.slots, num_slots),
    ):
        if numbers and not (min(numbers) >= 0 and max(numbers) < end):
            raise ValueError(f"there is no {name} beyond {end - 1} or below 0: {numbers}")


class Outcome(NamedTuple):
    """The outcome of the jobs of one step and direction."""

    numbers: tuple[int, ...]
    failures: dict[int, str]
    # Blocks copied; 0 when a job failed, because the time is meaningless then.
    num_blocks: int

    def add_to(self, results: JobResults, direction: Direction, seconds: float) -> None:
        """Reports the jobs as done on this rank, after so many seconds."""
        results.num_ranks_done |= dict.fromkeys(self.numbers, 1)
        results.failures |= self.failures
        if self.num_blocks:
            results.times[self.numbers[0]] = CopyTime(direction, self.num_blocks, seconds)


def try_each(jobs: Iterable[CopyJob], copy: Callable[[CopyJob], None]) -> Outcome:
    """Copies each job; one that raises does not affect the others."""
    numbers: list[int] = []
    failures: dict[int, str] = {}
    num_blocks = 0
    for job in jobs:
        numbers.append(job.number)
        try:
            copy(job)
            num_blocks += len(job.block_ids)
        except Exception as error:
            _log.exception("copy job %d (%s) failed", job.number, job.direction.value)
            failures[job.number] = f"{type(error).__name__}: {error}"
    return Outcome(tuple(numbers), failures, 0 if failures else num_blocks)
