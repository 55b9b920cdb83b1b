"""Measures swap times through the swap connector: copies in steps that compute nothing.

Blocks and slots are scattered, as in an engine that has run for a while: neighbours
would be copied in fewer, longer pieces. The seconds are those that the connector
reports, from which online calibration learns too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from prefill_worker.local_engine import LocalEngine
from prefill_worker.profile_budget import Budget
from prefill_worker.profile_plan import Samples, swap_sizes
from prefill_worker.swap_connector import SwapConnector, SwapWorkerMeta, find_connector
from prefill_worker.swap_jobs import CopyJob, Direction, JobResults
from stream2llm.api.errors import InternalError

# Many, because they are short: a disturbance of a second should not affect half of them.
MAX_ROUNDS = 25


@dataclass(slots=True)
class SwapTimes:
    """Seconds by number of blocks, for each direction."""

    out: Samples = field(default_factory=Samples)
    back: Samples = field(default_factory=Samples)


class SwapMeter:
    """Copies blocks on an engine that has a SwapConnector and no sessions."""

    def __init__(self, engine: LocalEngine) -> None:
        connector = find_connector(engine.scheduler.connector, SwapConnector)
        assert connector is not None, "the engine was started without a SwapConnector"
        self._engine = engine
        self._connector = connector
        self._random = random.Random(0)
        self._num_jobs = 0
        # One block is vLLM's null block.
        self._num_blocks = engine.config.cache_config.num_gpu_blocks - 1
        self.sizes = swap_sizes(min(self._num_blocks // 4, connector.num_slots))
        # Enough to scatter the slots; writing all of a large pool would only take time.
        self._num_slots = min(2 * self.sizes[-1], connector.num_slots)

    def measure(self, budget: Budget) -> SwapTimes:
        """Runs up to 25 rounds of all sizes until the time is up.

        Raises InvalidRequestError when not even one round fits, InternalError
        when a copy fails.
        """
        self._warm_up(budget)
        times = SwapTimes()
        longest_s = 0.0
        for number in range(1, MAX_ROUNDS + 1):
            if not budget.has(longest_s):
                break
            budget.progress.tick(
                f"swap: round {number} of {MAX_ROUNDS}, 1 to {self.sizes[-1]} blocks out and back"
            )
            began_s = budget.clock.monotonic_s()
            self._round(times)
            longest_s = max(longest_s, budget.clock.monotonic_s() - began_s)
        if not longest_s:
            raise budget.too_short("one round of copies does not fit into it")
        return times

    def _warm_up(self, budget: Budget) -> None:
        """Writes the pool once, because that is when its memory is committed."""
        size = self.sizes[-1]
        budget.progress.report(f"swap: 1 to {size} blocks out and back")
        for first in range(0, self._num_slots, size):
            if not budget.has(0):
                raise budget.too_short("the host memory to swap to could not be written once")
            slots = tuple(range(first, min(first + size, self._num_slots)))
            self._copy(Direction.OUT, tuple(range(1, len(slots) + 1)), slots)
        self._copy(Direction.IN, tuple(range(1, size + 1)), tuple(range(size)))

    def _round(self, times: SwapTimes) -> None:
        for size in self.sizes:
            blocks = tuple(self._random.sample(range(1, self._num_blocks + 1), size))
            slots = tuple(self._random.sample(range(self._num_slots), size))
            times.out.add(size, self._copy(Direction.OUT, blocks, slots))
            times.back.add(size, self._copy(Direction.IN, blocks, slots))

    def _copy(self, direction: Direction, blocks: tuple[int, ...], slots: tuple[int, ...]) -> float:
        """Returns the seconds of one job, in a step of its own."""
        self._num_jobs += 1
        self._connector.start(CopyJob(self._num_jobs, direction, blocks, slots))
        results = _results_of(self._engine.execute(self._engine.scheduler.schedule()))
        if results.failures:
            raise InternalError(f"copying {len(blocks)} blocks failed: {results.failures}")
        [time] = results.times.values()
        return time.seconds


def _results_of(output: Any) -> JobResults:
    """Returns the ranks' results; the step was idle, so they have waited for all copies.

    Taken from the step's output: the scheduler has no sessions for these jobs.
    """
    connector_output = output.kv_connector_output
    meta = connector_output.kv_connector_worker_meta if connector_output else None
    if not isinstance(meta, SwapWorkerMeta):
        raise InternalError("the workers reported no copies")
    return meta.results
