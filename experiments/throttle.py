"""A slower link to the host, on a machine where KV and CPU KV offload pool are one memory.

Wraps the copier of this process's engine: each job waits beside what it takes
anyway, and says so in the times that it reports. So profiles that are measured
and costs that are learned are those of the slow link.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vllm.distributed.kv_transfer import get_kv_transfer_group

from prefill_worker.block_copy import BlockCopier
from prefill_worker.swap_connector import SwapConnector, find_connector
from prefill_worker.swap_jobs import CopyJob, Direction, JobResults, StepJobs


@dataclass(frozen=True, slots=True)
class Link:
    """What a link adds to a copy one way."""

    per_copy_s: float = 0.0
    per_block_s: float = 0.0

    def seconds(self, jobs: Sequence[CopyJob]) -> float:
        """Seconds that it adds to these jobs, one after the other."""
        num_blocks = sum(len(job.slots) for job in jobs)
        return len(jobs) * self.per_copy_s + num_blocks * self.per_block_s


class ThrottledCopier:
    """A `BlockCopier` behind a slow link."""

    def __init__(self, copier: BlockCopier, link: Link) -> None:
        self._copier = copier
        self._link = link
        # Since the last results, and in all.
        self._waited_s = dict.fromkeys(Direction, 0.0)
        self.total_waited_s = 0.0

    def start(self, jobs: StepJobs) -> None:
        """Copies, and waits for what the link would still take."""
        self._copier.start(jobs)
        for direction, batch in ((Direction.OUT, jobs.outs), (Direction.IN, jobs.ins)):
            if batch:
                waited_s = _wait(self._link.seconds(batch))
                self._waited_s[direction] += waited_s
                self.total_waited_s += waited_s

    def take_results(self, *, wait: bool) -> JobResults:
        """The copier's, with the waits in its times."""
        results = self._copier.take_results(wait=wait)
        results.times = {
            batch: time._replace(seconds=time.seconds + self._waited_s[time.direction])
            for batch, time in results.times.items()
        }
        self._waited_s = dict.fromkeys(Direction, 0.0)
        return results


def _wait(seconds: float) -> float:
    """Sleeps, because a device that copies leaves the cores alone; how long it really took."""
    started_s = time.perf_counter()
    if seconds > 0:
        time.sleep(seconds)
    return time.perf_counter() - started_s


@contextmanager
def throttled(link: Link) -> Iterator[ThrottledCopier]:
    """This process's engine copies over that link meanwhile."""
    connector = find_connector(get_kv_transfer_group(), SwapConnector)
    assert connector is not None, "the engine of this process does not swap"
    copier = connector._copier
    assert copier is not None, "the engine has not started"
    connector._copier = slow = ThrottledCopier(copier, link)
    try:
        yield slow
    finally:
        connector._copier = copier
