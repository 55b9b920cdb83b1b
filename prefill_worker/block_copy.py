"""Copies KV blocks between the accelerator and a pool of slots on the host.

Knows tensors and jobs, but not vLLM. A copier gets the KV memory as views
[num_blocks, num_parts, words] (`block_regions.py`) and owns the pool
[num_slots, words of a block]: on the host a block is one contiguous piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from prefill_worker.copy_batch import check_job, runs_of, split_rows, try_each
from prefill_worker.copy_streams import CudaCopyStream
from prefill_worker.staged_copier import StagedCopier
from prefill_worker.swap_jobs import CopyJob, Direction, JobResults, StepJobs
from stream2llm.serving.system.clock import Clock, SystemClock

# Device memory of one of the two staging buffers, which `gpu_memory_utilization` has to
# leave free: vLLM's memory profiling does not see it.
STAGING_BYTES = 64 * 1024 * 1024


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
            columns = split_rows(pool, views)
            self._pairs = [(a.numpy(), b.numpy()) for a, b in zip(views, columns, strict=True)]
        self._clock = clock
        self._results = JobResults()

    def start(self, jobs: StepJobs) -> None:
        """See `BlockCopier`; returns when all is copied."""
        for direction, batch in ((Direction.OUT, jobs.outs), (Direction.IN, jobs.ins)):
            started_s = self._clock.monotonic_s()
            outcome = try_each(batch, self._copy)
            seconds = self._clock.monotonic_s() - started_s
            outcome.add_to(self._results, direction, seconds)

    def take_results(self, *, wait: bool) -> JobResults:
        """See `BlockCopier`; there is never a copy to wait for."""
        results, self._results = self._results, JobResults()
        return results

    def _copy(self, job: CopyJob) -> None:
        check_job(job, self._num_blocks, self._num_slots)
        for block, slot, length in runs_of(zip(job.block_ids, job.slots, strict=True)):
            for kv, pool in self._pairs:
                blocks, slots = kv[block : block + length], pool[slot : slot + length]
                if job.direction is Direction.OUT:
                    slots[:] = blocks
                else:
                    blocks[:] = slots


class BlockCopier(Protocol):
    """Copies the jobs of a step; what the connector needs."""

    def start(self, jobs: StepJobs) -> None:
        """Copies, or begins to; `outs` before `ins`. A job that raises is a failed job."""

    def take_results(self, *, wait: bool) -> JobResults:
        """Returns what has ended since the last call; `wait` first waits for everything started."""


def make_copier(views: Sequence[torch.Tensor], num_slots: int) -> BlockCopier:
    """Returns the copier for the device of `views`; allocates the pool.

    Raises RuntimeError when the host memory cannot be allocated or pinned.
    """
    device = views[0].device if views else torch.device("cpu")
    if device.type == "cpu":
        return HostCopier(views, _empty_pool(views, num_slots), SystemClock())
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
