"""vLLM's NIXL connector with corrections: how many tokens it reads, until when, and which KV.

The stock connector assumes that prefill computed every token of the decode prompt,
and asks for as many blocks. Our decode prompt has one token more: the first token
of the answer, which prefill sampled but never computed. When the prompt fills its
last block exactly, that token opens a block that prefill does not have, and the
stock connector fails an assertion that ends the engine. So the scheduler's half
asks for the prefilled tokens only, and the decode engine computes the first
token's KV itself.

The stock connector also accepts a read that ended after its lease; the worker's
half reports such a read as failed. Before it reports any other read, it samples the blocks
that were read, for the scheduler to compare with their digest (digest_check.py); on a GPU
in a stream of its own, so that the samples are there at the next step, and no step waits.

Finally, the stock side channel ends at the first message that it does not expect; ours
(stream2llm/engine/side_channel.py) does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlConnector
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from decode_worker.digest_check import job_for
from decode_worker.fetch_orders import order_from_wire
from decode_worker.lease_watch import STATS, Expiry, LeaseWatch, clock_offset_s
from stream2llm.engine import side_channel
from stream2llm.engine.kv_digest import SampleJob
from stream2llm.engine.kv_sampling import (
    KvSampler,
    SampleMeta,
    Samples,
    first_head,
    require_covered,
)
from stream2llm.serving.settings.worker_options import WorkerOptions


class ReadStats(NixlKVConnectorStats):
    """The figures of one rank since the last step that reported any.

    They travel with each step's statistics from the ranks to the actor, as vLLM's own do.
    """

    def reset(self) -> None:
        """Begins anew; vLLM wants lists of numbers."""
        super().reset()
        self.data.update({name: [] for name in STATS.values()})

    def record_expired_read(self, expiry: Expiry) -> None:
        """Records a read that ended after its lease."""
        self.data[STATS[expiry]].append(1)

    def is_empty(self) -> bool:
        """Returns whether no read was counted."""
        return super().is_empty() and not any(self.data[name] for name in STATS.values())


class FirstTokenNixlConnector(NixlConnector):
    """Reads what prefill computed, without the first token, and rejects reads that ended late."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._config = vllm_config
        options = WorkerOptions.from_additional_config(vllm_config.additional_config)
        self.has_digests = options.handover.kv_digest
        if self.has_digests:
            require_covered(vllm_config, kv_cache_config)
        # The worker's half: jobs of reads under way, samples under way of reads that have
        # ended, and samples to report with this step; all by request.
        self._sampler: KvSampler | None = None
        self._jobs: dict[str, SampleJob] = {}
        self._sampling: dict[str, Samples] = {}
        self._sampled: dict[str, Samples] = {}
        if self.connector_scheduler is not None:
            side_channel.install(self.connector_scheduler)
        worker = self.connector_worker
        self._leases = LeaseWatch(worker._lease_extension if worker is not None else 0)
        if worker is not None:
            worker.xfer_stats = ReadStats()

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Returns the number of tokens to read beyond `num_computed_tokens`, and whether async."""
        num_tokens, is_async = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if not num_tokens:
            return num_tokens, is_async
        assert request.kv_transfer_params is not None
        num_prefilled = request.kv_transfer_params["remote_num_tokens"]
        missing = min(num_tokens, num_prefilled - num_computed_tokens)
        return (missing, is_async) if missing > 0 else (0, False)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Any:
        """Returns vLLM's metadata with a job for each read that begins."""
        jobs = dict(self._new_jobs()) if self.has_digests else {}
        meta = super().build_connector_meta(scheduler_output)
        meta.stream2llm_jobs = jobs
        return meta

    def _new_jobs(self) -> Iterator[tuple[str, SampleJob]]:
        size = self._config.cache_config.block_size
        reads = self.connector_scheduler._reqs_need_recv.items()
        for request_id, (request, block_ids, _, is_awaited) in reads:
            transfer = request.kv_transfer_params
            if not is_awaited or not any(block_ids):
                continue
            order = order_from_wire(request.sampling_params.extra_args)
            job = job_for(order, transfer, block_ids[0], size)
            if job is not None:
                yield request_id, job

    # -- the worker's half -----------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Registers the caches with NIXL, and prepares to sample them."""
        super().register_kv_caches(kv_caches)
        if self.has_digests:
            config = self.kv_cache_config
            head = first_head(self._config, config, self.connector_worker.tp_rank)
            self._sampler = KvSampler(kv_caches, config, head, in_stream=False)

    def start_load_kv(self, *args: Any, **kwargs: Any) -> None:
        """Starts the step's reads, and sends heartbeats for requests that wait to read."""
        metadata, now_s = self._connector_metadata, _now_s()
        self._jobs.update(metadata.stream2llm_jobs)
        for request in metadata.reqs_to_recv.values():
            deadline_s = self._deadline_s(request.remote)
            if deadline_s is not None and any(request.local_block_ids):
                self._leases.began(request.remote.request_id, deadline_s)
        # vLLM sends an engine no heartbeat while the handshake with it is under way.
        reached = [
            each.req_ids
            for engine_id, each in metadata.heartbeat_by_engine.items()
            if engine_id in self.connector_worker._remote_agents
        ]
        super().start_load_kv(*args, **kwargs)
        if reached:
            self._leases.sent_signs({name for names in reached for name in names}, now_s)

    def _deadline_s(self, remote: Any) -> float | None:
        """Returns the lease's end by the local clock; None while the remote clock is unknown."""
        measured_s = self.connector_worker._engine_clock_offset.get(remote.engine_id)
        if remote.blocks_expiry_time is None or measured_s is None:
            return None
        return float(remote.blocks_expiry_time - clock_offset_s(remote.host, measured_s))

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> ReadStats:
        """Returns figures of reads from what a rank has sent."""
        return ReadStats(data=data or {})

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """Returns vLLM's results, with reads that ended after their lease marked as failed.

        A read that has to be sampled is reported with its samples.
        """
        worker = self.connector_worker
        reading: Mapping[str, Any] = dict(worker._recving_metadata)
        results = super().get_transfer_results(finished_req_ids)
        for request_id in results.finished_recving:
            meta = reading[request_id]
            deadline_s = self._deadline_s(meta.remote)
            if deadline_s is not None:
                # A read that began with the handshake is not in the metadata of `start_load_kv`.
                self._leases.began_before(meta.remote.request_id, deadline_s)
            expiry = self._leases.ended(meta.remote.request_id, _now_s())
            if expiry is not None:
                worker.xfer_stats.record_expired_read(expiry)
                results.failed_recving.add(request_id)
                worker._invalid_block_ids.put(set(meta.local_block_ids[0]))
        self._sample(results)
        return results

    def _sample(self, results: Any) -> None:
        """Samples the blocks of reads that have ended, and keeps these back until that is done."""
        for request_id in tuple(results.finished_recving):
            job = self._jobs.pop(request_id, None)
            if job is None or request_id in results.failed_recving:
                continue
            assert self._sampler is not None, "a read before the KV caches were registered"
            self._sampling[request_id] = self._sampler.begin(job)
            results.finished_recving.discard(request_id)
        done = [name for name, samples in self._sampling.items() if samples.is_ready]
        self._sampled = {name: self._sampling.pop(name) for name in done}
        results.finished_recving.update(done)

    def build_connector_worker_meta(self) -> SampleMeta | None:
        """Returns the samples of the reads that are reported with this step."""
        sampled, self._sampled = self._sampled, {}
        if not sampled:
            return None
        assert self._sampler is not None
        head = self._sampler.first_head
        return SampleMeta(begun={name: (head, each) for name, each in sampled.items()})


def _now_s() -> float:
    # vLLM sets its deadlines by this clock.
    return time.perf_counter()  # noqa: TID251
