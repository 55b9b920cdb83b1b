"""Copies KV that is in host memory itself, synchronously."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prefill_worker.copy_batch import check_job, runs_of, split_rows, try_each
from prefill_worker.swap_jobs import CopyJob, Direction, JobResults, StepJobs
from stream2llm.serving.system.clock import Clock


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
