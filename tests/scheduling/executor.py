"""Computes nothing, and notices when a real model would have computed something wrong.

Stands where vLLM's executor stands, and knows only what the scheduler tells it
in SchedulerOutput, as the model runner of a worker process does: a copy of each
request's tokens, refreshed when the request is announced as new, and a block
table that grows by what each step adds.

KV of a position depends on all tokens up to it, so a block holds, at each
offset, a digest of the whole prefix. Every position a step attends to must hold
the digest of the request's own prefix; a token is sampled from the digest of
the whole prompt. KV that was cut wrongly, freed too early, overwritten, found
under a wrong hash, or computed from tokens that are no longer true shows up as
a failed assertion or as a different answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import (
    MultiKVConnectorMetadata,
    MultiKVConnectorWorkerMetadata,
)
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

from prefill_worker.nixl_connector import STEP
from prefill_worker.swap_connector import SwapMetadata, SwapWorkerMeta
from prefill_worker.swap_jobs import CopyJob, CopyTime, Direction, JobResults, StepJobs
from stream2llm.engine.kv_digest import Part, Rows, SampleJob, places
from stream2llm.engine.kv_sampling import SampleMeta
from tests.digests import answer_of, digest_after, prefix_digests

NULL_BLOCK = 0


@dataclass
class RunnerCopy:
    """What a model runner remembers of one request."""

    tokens: list[int]
    block_ids: list[int]
    num_computed: int
    digests: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.digests = prefix_digests(self.tokens)

    def append(self, token_id: int) -> None:
        """Adds a token that was sampled."""
        self.tokens.append(token_id)
        self.digests.append(digest_after(self.digests[-1], token_id))


class LeaseHolder:
    """The worker's half of the NIXL connector: who may still be read, until when."""

    def __init__(self) -> None:
        self._in_batch: set[str] = set()
        self._held: set[str] = set()
        self._done: set[str] = set()
        # A reader may be faster than the scheduler's word that there is a lease.
        self._ended: set[str] = set()
        # Read before the worker knew of it: a notice waits until the end of a step.
        self._early: set[str] = set()

    @property
    def held(self) -> frozenset[str]:
        """Finished requests whose blocks wait for a reader."""
        return frozenset(self._held)

    @property
    def ended(self) -> frozenset[str]:
        """Those whose lease was known, and is over."""
        return frozenset(self._ended)

    def take(self, metadata: Any) -> None:
        """What the scheduler's half sends with each step."""
        self._in_batch |= metadata.reqs_in_batch
        for request_id in metadata.reqs_not_processed:
            assert request_id not in self._held, f"{request_id}: aborted under a lease"
            self._in_batch.discard(request_id)
        for request_id, deadline_s in metadata.reqs_to_send.items():
            # The real one ignores what it has not heard of before; the blocks
            # of such a request would never be free again.
            known = request_id in self._in_batch | self._ended
            assert known, f"{request_id}: leased, and never announced to the worker"
            if request_id in self._in_batch:
                self._held.add(request_id)
                if deadline_s <= 0:
                    self.end(request_id)
        for request_id in self._early & self._in_batch:
            self.end(request_id)
        self._early.clear()

    def end(self, request_id: str) -> None:
        """The reader has read, or the deadline has passed."""
        if request_id not in self._in_batch:
            self._early.add(request_id)
            return
        self._in_batch.discard(request_id)
        self._held.discard(request_id)
        self._done.add(request_id)
        self._ended.add(request_id)

    def report(self) -> set[str]:
        """What ended since the last step."""
        done, self._done = self._done, set()
        return done


KV = list[list[int | None]]


# As if there were so many layers.
NUM_LAYERS = 2


def sample(kv: KV, job: SampleJob) -> Rows:
    """What a rank samples of these blocks: other slots in each layer, of one word each."""
    slots = places(job, 1).slots[:, 0]
    values = [
        [
            hash((layer, int(key), kv[block_id][(slot + layer) % filled])) & 0xFFFF
            for layer in range(NUM_LAYERS)
        ]
        for block_id, key, slot, filled in zip(
            job.block_ids, job.keys, slots, job.num_filled, strict=True
        )
    ]
    return np.array(values, dtype=np.uint16)


class FakeCopier:
    """The worker's half of the swap connector, between digests.

    Like a device that copies beside its work: what comes back is written
    `delay_steps` steps after it was asked for, into the blocks it was asked
    for, whichever request has them by then.
    """

    def __init__(self, kv: KV, num_slots: int, delay_steps: int) -> None:
        self._kv = kv
        self._delay_steps = delay_steps
        self.host: KV = [[None] * len(kv[0]) for _ in range(num_slots)]
        self.fails = False
        self._under_way: list[tuple[int, CopyJob]] = []
        self._results = JobResults()

    def start(self, jobs: StepJobs) -> None:
        """Outs at once, ins later."""
        for job in jobs.outs:
            self._copy(job)
        self._under_way += [(self._delay_steps, job) for job in jobs.ins]

    def _copy(self, job: CopyJob) -> None:
        self._results.num_ranks_done[job.number] = 1
        if self.fails:
            self._results.failures[job.number] = "injected"
            return
        for block_id, slot in zip(job.block_ids, job.slots, strict=True):
            if job.direction is Direction.OUT:
                assert None not in self._kv[block_id], "a block that is not full is copied"
                self.host[slot] = list(self._kv[block_id])
            else:
                self._kv[block_id] = list(self.host[slot])
        self._results.times[job.number] = CopyTime(job.direction, len(job.slots), 1e-3)

    def report(self) -> JobResults:
        """After a step."""
        for delay, job in self._under_way:
            if not delay:
                self._copy(job)
        self._under_way = [(delay - 1, job) for delay, job in self._under_way if delay]
        results, self._results = self._results, JobResults()
        return results


class FakeExecutor:
    """Executes steps against digests instead of tensors."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_slots: int = 0,
        load_delay_steps: int = 0,
        *,
        runner_slots: int = 0,
    ) -> None:
        self._block_size = block_size
        # As many as vLLM's model runner V2 has, which counts computed tokens itself; 0: V1.
        self._runner_slots = runner_slots
        self.kv: KV = [[None] * block_size for _ in range(num_blocks)]
        self.copier = FakeCopier(self.kv, num_slots, load_delay_steps)
        self.requests: dict[str, RunnerCopy] = {}
        # All digests that were KV at some time, be they lost since or not.
        self.ever_computed: set[int] = set()
        self.leases = LeaseHolder()
        # The blocks that the step under way completes.
        self._job: SampleJob | None = None
        self.num_steps = 0
        self.num_tokens = 0

    def execute(self, output: SchedulerOutput) -> ModelRunnerOutput:
        """One step, with the assertions of the module's docstring."""
        self.num_steps += 1
        self.num_tokens += output.total_num_scheduled_tokens
        self._take_metadata(output.kv_connector_metadata)
        starts = self._update_copies(output)
        assert starts.keys() == output.num_scheduled_tokens.keys()
        scheduled = output.num_scheduled_tokens.items()
        # A model writes the KV of the whole batch before it attends to any.
        for request_id, num_tokens in scheduled:
            self._write(request_id, starts[request_id], num_tokens)
        sampled = [self._attend(name, starts[name] + num_tokens) for name, num_tokens in scheduled]
        return ModelRunnerOutput(
            req_ids=list(output.num_scheduled_tokens),
            req_id_to_index={name: i for i, name in enumerate(output.num_scheduled_tokens)},
            sampled_token_ids=sampled,
            kv_connector_output=self._report(output.kv_connector_metadata),
        )

    def _take_metadata(self, metadata: Any) -> None:
        """Each connector's part, as a MultiConnector hands it on."""
        for part in getattr(metadata, "metadata", (metadata,)):
            if isinstance(part, SwapMetadata):
                self.copier.start(part.jobs)
            elif part is not None:
                self.leases.take(part)
                self._job = part.stream2llm_job

    def _report(self, metadata: Any) -> KVConnectorOutput | None:
        done, results = self.leases.report(), self.copier.report()
        samples = self._samples()
        if not done and not results.num_ranks_done and samples is None:
            return None
        meta: KVConnectorWorkerMetadata | None = SwapWorkerMeta(results)
        if isinstance(metadata, MultiKVConnectorMetadata):
            meta = MultiKVConnectorWorkerMetadata((samples, meta))
        elif not results.num_ranks_done:
            meta = samples
        return KVConnectorOutput(finished_sending=done, kv_connector_worker_meta=meta)

    def _samples(self) -> SampleMeta | None:
        job, self._job = self._job, None
        return SampleMeta({STEP: [Part(0, sample(self.kv, job))]}) if job is not None else None

    def _update_copies(self, output: SchedulerOutput) -> dict[str, int]:
        """The requests of this step and where each starts, as `_update_states` does it."""
        for request_id in output.finished_req_ids:
            self.requests.pop(request_id, None)
        if self._runner_slots:
            for request_id in output.preempted_req_ids or ():
                self.requests.pop(request_id, None)
        starts = {}
        for new in output.scheduled_new_reqs:
            self.requests[new.req_id] = _copy_of(new)
            starts[new.req_id] = new.num_computed_tokens
            assert len(self.requests) <= (self._runner_slots or len(self.requests)), "no free slot"
        return starts | self._extend_copies(output.scheduled_cached_reqs)

    def _extend_copies(self, cached: CachedRequestData) -> dict[str, int]:
        for request_id, new_blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            held = self.requests[request_id].block_ids
            if request_id in cached.resumed_req_ids:
                held.clear()
            held.extend(new_blocks[0] if new_blocks else ())
        if self._runner_slots:
            counted = [self.requests[request_id].num_computed for request_id in cached.req_ids]
            assert counted == cached.num_computed_tokens
        return dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))

    def _write(self, request_id: str, start: int, num_tokens: int) -> None:
        copy, end = self.requests[request_id], start + num_tokens
        assert num_tokens > 0
        assert end <= len(copy.tokens), f"{request_id}: step ends at {end} of {len(copy.tokens)}"
        assert NULL_BLOCK not in copy.block_ids
        assert len(set(copy.block_ids)) == len(copy.block_ids)
        copy.num_computed = end
        self.ever_computed.update(copy.digests[start:end])
        for position in range(start, end):
            block, offset = divmod(position, self._block_size)
            self.kv[copy.block_ids[block]][offset] = copy.digests[position]

    def _attend(self, request_id: str, end: int) -> list[int]:
        """Samples where all is computed; as a model runner, it keeps what it has sampled."""
        copy = self.requests[request_id]
        self.assert_holds(request_id, copy.block_ids, copy.digests[:end])
        if end < len(copy.tokens):
            return []
        token_id = answer_of(copy.tokens)
        copy.append(token_id)
        return [token_id]

    def assert_holds(self, what: str, block_ids: Sequence[int], digests: Sequence[int]) -> None:
        """The blocks hold the KV of this prefix."""
        size = self._block_size
        assert len(block_ids) * size >= len(digests), f"{what}: too few blocks"
        for position, digest in enumerate(digests):
            block_id, offset = block_ids[position // size], position % size
            assert self.kv[block_id][offset] == digest, (
                f"{what}: position {position} in block {block_id} holds KV of something else"
            )


def _copy_of(new: NewRequestData) -> RunnerCopy:
    # Another process: nothing is shared with the scheduler.
    assert new.prompt_token_ids is not None
    return RunnerCopy(list(new.prompt_token_ids), list(new.block_ids[0]), new.num_computed_tokens)
