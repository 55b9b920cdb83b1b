"""vLLM's NIXL connector on the side that is read from; it samples blocks for their digests.

The scheduler queues a job for each step (prefill_worker/digests.py). The ranks sample at the
end of that step, behind its forward pass, and the values return with the step's output.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1 import nixl
from vllm.v1.core.sched.output import SchedulerOutput

from stream2llm.engine import side_channel
from stream2llm.engine.kv_digest import SampleJob
from stream2llm.engine.kv_sampling import KvSampler, SampleMeta, first_head, require_covered
from stream2llm.serving.settings.worker_options import WorkerOptions

# The one job of a step.
STEP = "step"


class NixlConnector(nixl.NixlConnector):
    """vLLM's connector by its name, which vLLM looks for in places, with digests."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if self.connector_scheduler is not None:
            side_channel.install(self.connector_scheduler)
        options = WorkerOptions.from_additional_config(vllm_config.additional_config)
        self.has_digests = options.handover.kv_digest
        if self.has_digests:
            require_covered(vllm_config, kv_cache_config)
        self._config = vllm_config
        # The scheduler's half: for the step being built.
        self._job: SampleJob | None = None
        # The worker's half.
        self._sampler: KvSampler | None = None

    # -- the scheduler's half --------------------------------------------------------

    def sample(self, job: SampleJob | None) -> None:
        """Sets the job of the step being built."""
        self._job = job

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Any:
        """Returns vLLM's metadata with the step's job."""
        meta = super().build_connector_meta(scheduler_output)
        meta.stream2llm_job, self._job = self._job, None
        return meta

    # -- the worker's half -----------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Registers the caches with NIXL, and prepares to sample them."""
        super().register_kv_caches(kv_caches)
        if self.has_digests:
            config = self.kv_cache_config
            head = first_head(self._config, config, self.connector_worker.tp_rank)
            self._sampler = KvSampler(kv_caches, config, head, in_stream=True)

    def build_connector_worker_meta(self) -> SampleMeta | None:
        """Samples the step's blocks behind its forward pass."""
        job: SampleJob | None = self._connector_metadata.stream2llm_job
        if job is None:
            return None
        assert self._sampler is not None, "a step before the KV caches were registered"
        return SampleMeta(begun={STEP: (self._sampler.first_head, self._sampler.begin(job))})
