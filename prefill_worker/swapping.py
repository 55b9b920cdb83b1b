"""Copies of KV to the host and back: carries out the swaps of a plan.

A copy is a job that the worker processes do at the beginning of a step, and whose end
they report after that step or, on an accelerator that copies concurrently, after a
later one. Until then the job itself holds what it touches: a job that restores KV has
a reference on the blocks it writes, and owns the slots it reads. So whatever happens
to the session meanwhile (more context, cancel), no other session gets a block that is
still being written. A job that swaps KV out needs no such hold: the worker copies
before anything overwrites, and slots are written in the order of the jobs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.request import Request

from prefill_worker import blocks
from prefill_worker.cost_calibration import CostCalibration
from prefill_worker.offload_pool import OffloadPool
from prefill_worker.report import SchedulerCounters, SwapState
from prefill_worker.swap_jobs import CopyJob, Direction, JobResults
from prefill_worker.types import Load, SwapChoice

_log = logging.getLogger(__name__)


class Copier(Protocol):
    """The scheduler's half of the swap connector."""

    @property
    def num_slots(self) -> int:
        """The size of the CPU KV offload pool in blocks."""

    @property
    def bytes_per_block(self) -> int:
        """The bytes of a block over all layers and ranks."""

    def start(self, job: CopyJob) -> None:
        """Makes the workers do the job in the step that is being built."""

    def take_results(self) -> JobResults:
        """Returns what they have reported since the last call."""


class NoCopier:
    """The copier of an engine that does not swap: a pool without slots."""

    num_slots = 0
    bytes_per_block = 0

    def start(self, job: CopyJob) -> None:
        """Must not be called: a plan swaps only as much as there are slots."""
        raise AssertionError(f"{job}: there is no CPU KV offload pool")

    def take_results(self) -> JobResults:
        """Returns no results."""
        return JobResults()


class Ended(NamedTuple):
    """The outcome of live sessions' jobs."""

    # Sessions whose KV was restored, with their number of computed tokens now.
    restored: list[tuple[str, int]]
    # Sessions whose KV could not be restored.
    not_restored: list[str]
    # Sessions whose KV did not reach the host.
    not_saved: list[str]


@dataclass(slots=True)
class _Job:
    """A job that has not ended on every rank."""

    direction: Direction
    # None: the session no longer needs the result.
    request_id: str | None
    first_block: int
    slots: tuple[int, ...]
    # The blocks that it writes if it restores KV; vLLM's KVCacheBlocks.
    blocks: Sequence[Any] = ()
    num_ranks_left: int = 1
    has_failed: bool = False
    # Number of its last blocks that are no longer part of the session's context.
    num_stale: int = 0

    @property
    def stop_block(self) -> int:
        return self.first_block + len(self.slots) - self.num_stale


class Swapping:
    """The CPU KV offload pool, the jobs under way, and what they change in the sessions' KV."""

    def __init__(
        self,
        manager: KVCacheManager,
        copier: Copier,
        calibration: CostCalibration,
        counters: SchedulerCounters,
        *,
        num_ranks: int,
    ) -> None:
        self._manager = manager
        self._pool = manager.block_pool
        self._group = blocks.require_single_group(manager)
        self._copier = copier
        self._counters = counters
        self._num_ranks = num_ranks
        self.calibration = calibration
        self.host = OffloadPool(copier.num_slots)
        self._num_jobs = 0
        self._jobs: dict[int, _Job] = {}
        # Session to the job that restores its KV.
        self._loading: dict[str, _Job] = {}

    @property
    def num_pending(self) -> int:
        """Number of jobs under way."""
        return len(self._jobs)

    def is_loading(self, request_id: str) -> bool:
        """Whether KV of that session is being restored."""
        return request_id in self._loading

    @property
    def state(self) -> SwapState:
        """The state for reports."""
        costs = self.calibration.costs
        factors = costs.factors
        return SwapState(
            num_slots=self.host.num_slots,
            num_slots_used=self.host.num_used,
            bytes_per_block=self._copier.bytes_per_block,
            recompute_factor=factors.recompute,
            swap_out_factor=factors.swap_out,
            swap_in_factor=factors.swap_in,
            profile=costs.origin.profile,
            profile_source=costs.origin.source,
        )

    # -- the swaps of a plan ----------------------------------------------------------

    def swap_out(self, request_id: str, block_ids: Sequence[int], choice: SwapChoice) -> None:
        """Starts copying the blocks of `choice` to the host; they may be freed at once."""
        slots = self.host.put(request_id, choice.start, choice.num_blocks)
        self._start(
            _Job(Direction.OUT, request_id, choice.start, slots),
            tuple(block_ids[choice.start : choice.stop]),
        )
        self._counters.swapped_out_blocks += choice.num_blocks

    def load(self, request: Request, load: Load) -> None:
        """Gives the session blocks and starts copying its KV there; it counts when that ends."""
        request_id, size = request.request_id, self._group.block_size
        assert request.num_computed_tokens == load.first_block * size
        slots = self.host.take(request_id, load.first_block, load.num_blocks)
        allocated = self._manager.allocate_slots(
            request, load.num_blocks * size, delay_cache_blocks=True
        )
        assert allocated is not None, "the plan knew how many blocks are free"
        table = self._group.req_to_blocks[request_id]
        written = table[load.first_block : load.first_block + load.num_blocks]
        self._pool.touch(written)
        job = _Job(Direction.IN, request_id, load.first_block, slots, written)
        self._loading[request_id] = job
        self._start(job, tuple(block.block_id for block in written))
        self._counters.swapped_in_blocks += load.num_blocks

    def _start(self, job: _Job, block_ids: tuple[int, ...]) -> None:
        self._num_jobs += 1
        job.num_ranks_left = self._num_ranks
        self._jobs[self._num_jobs] = job
        self._copier.start(CopyJob(self._num_jobs, job.direction, block_ids, job.slots))

    # -- events of a session -----------------------------------------------------------

    def cut(self, request: Request, num_valid_tokens: int) -> int:
        """Drops copies of KV behind `num_valid_tokens` tokens; returns how many blocks.

        Blocks behind them that are being restored count, too.
        """
        request_id, num_valid = request.request_id, num_valid_tokens // self._group.block_size
        num_lost = self.host.drop_from(request_id, num_valid)
        job = self._loading.get(request_id)
        if job is None or job.stop_block <= num_valid:
            return num_lost
        num_kept: int = max(num_valid, job.first_block)
        num_lost += job.stop_block - num_kept
        job.num_stale += job.stop_block - num_kept
        blocks.drop_blocks(self._manager, request, num_kept)
        if num_kept == job.first_block:
            self._give_up(request_id)
        return num_lost

    def drop_computed(self, request_id: str, num_computed_tokens: int) -> None:
        """Drops copies of what the session has computed, up to `num_computed_tokens`."""
        if self.host.has_copies(request_id):
            self.host.drop_before(request_id, num_computed_tokens // self._group.block_size)

    def forget(self, request_id: str) -> None:
        """Drops everything of an ended session."""
        if request_id in self._loading:
            self._give_up(request_id)
        self.host.forget(request_id)

    def _give_up(self, request_id: str) -> None:
        self._loading.pop(request_id).request_id = None

    # -- after a step -------------------------------------------------------------------

    def take_ended(self) -> Ended:
        """Processes the workers' results."""
        results = self._copier.take_results()
        self.calibration.note_times(results.times)
        ended = Ended([], [], [])
        for number, message in results.failures.items():
            self._fail(self._jobs[number], message, ended)
        for number, num_ranks in results.num_ranks_done.items():
            job = self._jobs[number]
            job.num_ranks_left -= num_ranks
            if not job.num_ranks_left:
                del self._jobs[number]
                self.calibration.end_batch(number)
                if job.direction is Direction.IN:
                    self._end_load(job, ended)
        return ended

    def _fail(self, job: _Job, message: str, ended: Ended) -> None:
        """Handles a job that failed on some rank, whatever the others do."""
        if job.has_failed:
            return
        job.has_failed = True
        self._counters.swap_failures += 1
        _log.error(
            "swap_failed direction=%s request=%s blocks=%d: %s; it is computed again",
            *(job.direction, job.request_id, len(job.slots), message),
        )
        if job.direction is Direction.OUT:
            self._poison(job, ended)

    def _poison(self, job: _Job, ended: Ended) -> None:
        """Drops copies that did not reach the host, also where they are being restored."""
        for other in self._jobs.values():
            if other.direction is Direction.IN and not set(other.slots).isdisjoint(job.slots):
                other.has_failed = True
        if job.request_id is not None:
            indices = range(job.first_block, job.stop_block)
            if self.host.lose(job.request_id, list(zip(indices, job.slots, strict=True))):
                ended.not_saved.append(job.request_id)

    def _end_load(self, job: _Job, ended: Ended) -> None:
        self.host.release(job.slots)
        self._pool.free_blocks(reversed(job.blocks))
        if job.request_id is None:
            return
        del self._loading[job.request_id]
        if job.has_failed:
            ended.not_restored.append(job.request_id)
        else:
            num_tokens = job.stop_block * self._group.block_size
            ended.restored.append((job.request_id, num_tokens))

    # -- for tests ---------------------------------------------------------------------------

    @property
    def pinned(self) -> list[int]:
        """Blocks that a job holds."""
        return [block.block_id for job in self._jobs.values() for block in job.blocks]

    def check_integrity(self, live: set[str]) -> None:
        """Raises AssertionError unless each slot is accounted for, by live sessions only."""
        taken = [
            s for job in self._jobs.values() if job.direction is Direction.IN for s in job.slots
        ]
        self.host.check_integrity(taken)
        assert self.host.sessions() <= live
        assert self._loading.keys() <= live
