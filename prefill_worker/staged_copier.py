"""Copies KV of a device with streams, through staging buffers, while the step computes.

The ordering is tested on fake streams that run as late as is allowed; it has not yet
run on a GPU (tests marked `gpu`), nor has its speed been measured.

 out: compute stream: gather the blocks into a staging buffer; after that the step
      may overwrite them. Side stream: staging buffer to the pool.
 in:  side stream: pool to a staging buffer, then scatter into the blocks.
 1. The side stream begins a batch when the compute stream has finished what was
    queued before: an `in` overwrites no block that an earlier step, or an `out` of
    this step, still reads.
 2. A staging buffer is filled again when the side stream has finished with it.
 3. The side stream works in the order of the calls, so a slot that is written
    and read again, or released and written again, needs no further care.
 4. A job is reported as done, or failed, when its batch has ended on the side
    stream: until then its blocks and slots are read or written.

An asynchronous error of the device (a lost CUDA context) does not fail a job: it is
raised, because no work on that device can go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple

import torch

from prefill_worker.copy_batch import Outcome, check_job, runs_of, split_rows, try_each
from prefill_worker.copy_streams import CopyStream, M
from prefill_worker.swap_jobs import CopyJob, Direction, JobResults, StepJobs


@dataclass(slots=True)
class _Staging(Generic[M]):
    """A buffer in device memory [num_rows, words of a block] that blocks pass through."""

    rows: torch.Tensor
    # Reached when the side stream has finished with the buffer; None before its first use.
    is_free: M | None = None


class _Batch(NamedTuple, Generic[M]):
    """The jobs of one step and direction that are under way."""

    direction: Direction
    outcome: Outcome
    started: M
    ended: M


class StagedCopier(Generic[M]):
    """Copies through staging buffers while the step computes; see the module docstring.

    Call `start` before the step's forward pass is queued, on the thread whose current
    stream computes it.
    """

    def __init__(
        self,
        views: Sequence[torch.Tensor],
        pool: torch.Tensor,
        staging: Iterable[torch.Tensor],
        compute: CopyStream[M],
        side: CopyStream[M],
    ) -> None:
        self._views = views
        self._pool = pool
        self._staging: deque[_Staging[M]] = deque(_Staging(rows) for rows in staging)
        self._compute = compute
        self._side = side
        self._batches: deque[_Batch[M]] = deque()
        # Reported before their batch has ended: the scheduler must not restore blocks
        # that never reached the pool.
        self._failures: dict[int, str] = {}

    def start(self, jobs: StepJobs) -> None:
        """See `BlockCopier`; queues the copies."""
        self._start_batch(Direction.OUT, jobs.outs, self._copy_out)
        self._start_batch(Direction.IN, jobs.ins, self._copy_in)

    def take_results(self, *, wait: bool) -> JobResults:
        """See `BlockCopier`. Raises the device's errors, after which its memory is lost."""
        results = JobResults(failures=self._failures)
        self._failures = {}
        while self._batches:
            direction, outcome, started, ended = self._batches[0]
            if wait:
                ended.wait()
            elif not ended.is_reached():
                break
            self._batches.popleft()
            outcome.add_to(results, direction, ended.seconds_since(started))
        return results

    def _start_batch(
        self, direction: Direction, jobs: Sequence[CopyJob], copy: Callable[[CopyJob], None]
    ) -> None:
        if not jobs:
            return
        self._side.wait_for(self._compute.mark())
        started = self._side.mark()
        outcome = try_each(jobs, copy)
        self._failures |= outcome.failures
        self._batches.append(_Batch(direction, outcome, started, self._side.mark()))

    def _copy_out(self, job: CopyJob) -> None:
        for block_ids, slots in self._portions(job):
            staging = self._next_staging()
            rows = staging.rows[: len(slots)]
            if staging.is_free is not None:
                self._compute.wait_for(staging.is_free)
            try:
                self._compute.run(partial(_gather, self._views, block_ids, rows))
                self._side.wait_for(self._compute.mark())
                self._side.run(partial(_store, rows, self._pool, slots))
            finally:
                # Even if one of them raises: what was queued before uses the buffer.
                self._side.wait_for(self._compute.mark())
                staging.is_free = self._side.mark()

    def _copy_in(self, job: CopyJob) -> None:
        for block_ids, slots in self._portions(job):
            staging = self._next_staging()
            rows = staging.rows[: len(slots)]
            try:
                self._side.run(partial(_load, self._pool, slots, rows))
                self._side.run(partial(_scatter, rows, self._views, block_ids))
            finally:
                staging.is_free = self._side.mark()

    def _portions(self, job: CopyJob) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """Yields the job's blocks and slots in portions that fit into a staging buffer."""
        check_job(job, self._views[0].shape[0], self._pool.shape[0])
        num_rows = self._staging[0].rows.shape[0]
        for at in range(0, len(job.slots), num_rows):
            yield job.block_ids[at : at + num_rows], job.slots[at : at + num_rows]

    def _next_staging(self) -> _Staging[M]:
        """Returns the buffers in turn, so that one is filled while the other is emptied."""
        self._staging.rotate(-1)
        return self._staging[0]


def _gather(views: Sequence[torch.Tensor], block_ids: Sequence[int], rows: torch.Tensor) -> None:
    index = _on_device(block_ids, rows.device)
    for view, part in zip(views, split_rows(rows, views), strict=True):
        torch.index_select(view, 0, index, out=part)


def _scatter(rows: torch.Tensor, views: Sequence[torch.Tensor], block_ids: Sequence[int]) -> None:
    index = _on_device(block_ids, rows.device)
    for view, part in zip(views, split_rows(rows, views), strict=True):
        view.index_copy_(0, index, part)


def _store(rows: torch.Tensor, pool: torch.Tensor, slots: Sequence[int]) -> None:
    for row, slot, length in runs_of(enumerate(slots)):
        pool[slot : slot + length].copy_(rows[row : row + length], non_blocking=True)


def _load(pool: torch.Tensor, slots: Sequence[int], rows: torch.Tensor) -> None:
    for row, slot, length in runs_of(enumerate(slots)):
        rows[row : row + length].copy_(pool[slot : slot + length], non_blocking=True)


def _on_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Returns int64 [n] on the device without synchronising with it."""
    index = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return index.to(device, non_blocking=True)
