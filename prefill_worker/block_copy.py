"""Copies KV blocks between the accelerator and a pool of slots on the host.

Knows tensors and jobs, but not vLLM. A copier gets the KV memory as views
[num_blocks, num_parts, words] (`block_regions.py`) and owns the pool
[num_slots, words of a block]: on the host a block is one contiguous piece.

`HostCopier` is for KV in host memory and copies synchronously.
`StagedCopier` is for a device with streams and copies while the step computes. Its
ordering is tested on fake streams that run as late as is allowed; it has not yet
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

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol

import torch

from prefill_worker.copy_streams import CopyStream, CudaCopyStream, M
from prefill_worker.swap_jobs import CopyJob, CopyTime, Direction, JobResults, StepJobs
from stream2llm.serving.system.clock import Clock, SystemClock

_log = logging.getLogger(__name__)

# Device memory of one of the two staging buffers, which `gpu_memory_utilization` has to
# leave free: vLLM's memory profiling does not see it.
STAGING_BYTES = 64 * 1024 * 1024


class BlockCopier(Protocol):
    """Copies the jobs of a step; what the connector needs."""

    def start(self, jobs: StepJobs) -> None:
        """Copies, or begins to; `outs` before `ins`. A job that raises is a failed job."""

    def take_results(self, *, wait: bool) -> JobResults:
        """Returns what has ended since the last call; `wait` first waits for everything started."""


def make_copier(
    views: Sequence[torch.Tensor], num_slots: int, clock: Clock | None = None
) -> BlockCopier:
    """Returns the copier for the device of `views`; allocates the pool.

    Raises RuntimeError when the host memory cannot be allocated or pinned.
    """
    device = views[0].device if views else torch.device("cpu")
    if device.type == "cpu":
        return HostCopier(views, _empty_pool(views, num_slots), clock or SystemClock())
    if device.type != "cuda":
        raise ValueError(f"KV on a {device.type} device cannot be swapped")
    pool = _pinned(_empty_pool(views, num_slots))
    num_rows = max(1, min(STAGING_BYTES // max(pool[:1].nbytes, 1), num_slots))
    shape = (num_rows, pool.shape[1])
    staging = [torch.empty(shape, dtype=pool.dtype, device=device) for _ in range(2)]
    return StagedCopier(
        views, pool, staging, CudaCopyStream(None), CudaCopyStream(torch.cuda.Stream(device))
    )


def _empty_pool(views: Sequence[torch.Tensor], num_slots: int) -> torch.Tensor:
    """Returns [num_slots, words of a block]; a CPU commits the memory on the first write."""
    num_words = sum(view.shape[1] * view.shape[2] for view in views)
    return torch.empty((num_slots, num_words), dtype=views[0].dtype if views else torch.int8)


def _pinned(pool: torch.Tensor) -> torch.Tensor:
    """Page-locks `pool` in place: torch's own pinning would round up to a power of two."""
    if pool.nbytes:
        status = torch.cuda.cudart().cudaHostRegister(pool.data_ptr(), pool.nbytes, 0)
        if status.value != 0:
            raise RuntimeError(f"{pool.nbytes} bytes of host memory cannot be pinned: {status}")
    return pool


def _split(rows: torch.Tensor, views: Sequence[torch.Tensor]) -> list[torch.Tensor]:
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


def _check(job: CopyJob, num_blocks: int, num_slots: int) -> None:
    """Raises ValueError for a job outside the memory, which would be fatal on a GPU."""
    if len(job.block_ids) != len(job.slots):
        raise ValueError(f"{len(job.block_ids)} blocks, but {len(job.slots)} slots")
    for name, numbers, end in (
        ("block", job.block_ids, num_blocks),
        ("slot", job.slots, num_slots),
    ):
        if numbers and not (min(numbers) >= 0 and max(numbers) < end):
            raise ValueError(f"there is no {name} beyond {end - 1} or below 0: {numbers}")


class _Outcome(NamedTuple):
    """The outcome of the jobs of one step and direction."""

    numbers: tuple[int, ...]
    failures: dict[int, str]
    # Blocks copied; 0 when a job failed, because the time is meaningless then.
    num_blocks: int

    def add_to(self, results: JobResults, direction: Direction, seconds: float) -> None:
        results.num_ranks_done |= dict.fromkeys(self.numbers, 1)
        results.failures |= self.failures
        if self.num_blocks:
            results.times[self.numbers[0]] = CopyTime(direction, self.num_blocks, seconds)


def _try_each(jobs: Iterable[CopyJob], copy: Callable[[CopyJob], None]) -> _Outcome:
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
    return _Outcome(tuple(numbers), failures, 0 if failures else num_blocks)


class HostCopier:
    """Copies synchronously and in place: KV and pool are both host memory.

    Uses numpy, which copies on this thread alone. torch would wake its OpenMP threads
    for each block and wait for the last of them: 5 ms a copy instead of 0.1 ms when
    the cores have other work too.
    """

    def __init__(self, views: Sequence[torch.Tensor], pool: torch.Tensor, clock: Clock) -> None:
        self._num_blocks = views[0].shape[0] if views else 0
        self._num_slots = pool.shape[0]
        self._pairs: list[tuple[Any, Any]] = []
        if views:
            columns = _split(pool, views)
            self._pairs = [(a.numpy(), b.numpy()) for a, b in zip(views, columns, strict=True)]
        self._clock = clock
        self._results = JobResults()

    def start(self, jobs: StepJobs) -> None:
        """See `BlockCopier`; returns when all is copied."""
        for direction, batch in ((Direction.OUT, jobs.outs), (Direction.IN, jobs.ins)):
            started_s = self._clock.monotonic_s()
            outcome = _try_each(batch, self._copy)
            seconds = self._clock.monotonic_s() - started_s
            outcome.add_to(self._results, direction, seconds)

    def take_results(self, *, wait: bool) -> JobResults:
        """See `BlockCopier`; there is never a copy to wait for."""
        results, self._results = self._results, JobResults()
        return results

    def _copy(self, job: CopyJob) -> None:
        _check(job, self._num_blocks, self._num_slots)
        for block, slot, length in runs_of(zip(job.block_ids, job.slots, strict=True)):
            for kv, pool in self._pairs:
                blocks, slots = kv[block : block + length], pool[slot : slot + length]
                if job.direction is Direction.OUT:
                    slots[:] = blocks
                else:
                    blocks[:] = slots


@dataclass(slots=True)
class _Staging(Generic[M]):
    """A buffer in device memory [num_rows, words of a block] that blocks pass through."""

    rows: torch.Tensor
    # Reached when the side stream has finished with the buffer; None before its first use.
    is_free: M | None = None


class _Batch(NamedTuple, Generic[M]):
    """The jobs of one step and direction that are under way."""

    direction: Direction
    outcome: _Outcome
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
        outcome = _try_each(jobs, copy)
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
        _check(job, self._views[0].shape[0], self._pool.shape[0])
        num_rows = self._staging[0].rows.shape[0]
        for at in range(0, len(job.slots), num_rows):
            yield job.block_ids[at : at + num_rows], job.slots[at : at + num_rows]

    def _next_staging(self) -> _Staging[M]:
        """Returns the buffers in turn, so that one is filled while the other is emptied."""
        self._staging.rotate(-1)
        return self._staging[0]


def _gather(views: Sequence[torch.Tensor], block_ids: Sequence[int], rows: torch.Tensor) -> None:
    index = _on_device(block_ids, rows.device)
    for view, part in zip(views, _split(rows, views), strict=True):
        torch.index_select(view, 0, index, out=part)


def _scatter(rows: torch.Tensor, views: Sequence[torch.Tensor], block_ids: Sequence[int]) -> None:
    index = _on_device(block_ids, rows.device)
    for view, part in zip(views, _split(rows, views), strict=True):
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
