"""A KV connector for vLLM that copies blocks to a pool on the host and back on command.

In the engine's process the scheduler finds it with `find_connector` and gives it
jobs; they travel with the next step's metadata to every rank, where they begin
before that step's forward pass (`handle_preemptions`). Results return with the
output of each step.

To vLLM it is a connector that never has anything to load: restored blocks belong to
requests that kept them allocated, which vLLM's own loading does not support.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from prefill_worker.block_copy import BlockCopier, make_copier
from prefill_worker.block_regions import block_bytes, block_views, find_regions
from prefill_worker.swap_jobs import CopyJob, Direction, JobResults, StepJobs
from stream2llm.serving.observability import logs
from stream2llm.serving.settings.worker_options import WorkerOptions

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

C = TypeVar("C", bound=KVConnectorBase_V1)


def find_connector(connector: KVConnectorBase_V1 | None, kind: type[C]) -> C | None:
    """Returns the connector of class `kind`: `connector`, or a child of a MultiConnector."""
    children = getattr(connector, "sub_connectors", [connector])
    return next((child for child in children if isinstance(child, kind)), None)


@dataclass
class SwapMetadata(KVConnectorMetadata):
    """The jobs that a step brings to each rank."""

    jobs: StepJobs


@dataclass
class SwapWorkerMeta(KVConnectorWorkerMetadata):
    """The results of one rank, or of all together."""

    results: JobResults

    def aggregate(self, other: KVConnectorWorkerMetadata) -> SwapWorkerMeta:
        """Adds another rank's results of the same step."""
        assert isinstance(other, SwapWorkerMeta)
        self.results.add(other.results)
        return self


class SwapConnector(KVConnectorBase_V1, SupportsHMA):
    """Both halves; vLLM creates one object for the scheduler and one for each rank.

    The pool's size is in `WorkerOptions`, over all ranks. Raises ValueError, when the
    engine starts, for pipeline stages, for models whose new blocks vLLM clears, and
    for KV caches whose layout is not supported.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        options = WorkerOptions.from_additional_config(vllm_config.additional_config)
        logs.configure_child(options.logs)  # copies are logged in the ranks' processes
        parallel = vllm_config.parallel_config
        if parallel.pipeline_parallel_size > 1:
            raise ValueError("swapping needs pipeline_parallel_size=1: all ranks have equal blocks")
        if kv_cache_config.needs_kv_cache_zeroing:
            raise ValueError(
                "this model's new KV blocks are cleared in each step, after the copies have begun:"
                " it needs preemption: recompute"
            )
        # Number of ranks that report each job.
        self.num_ranks: int = parallel.world_size
        # Over all ranks. 0 when the engine has no KV memory, as in tests without a worker.
        self.bytes_per_block = block_bytes(find_regions(kv_cache_config)) * self.num_ranks
        self.num_slots = _num_slots(options, self.bytes_per_block)
        # The scheduler's half.
        self._to_start: dict[Direction, list[CopyJob]] = {each: [] for each in Direction}
        self._results = JobResults()
        # The worker's half.
        self._copier: BlockCopier | None = None
        self._must_wait = False

    @property
    def requires_kv_delivery(self) -> bool:
        """Returns False: what is not copied is computed again."""
        return False

    # -- the scheduler's half ----------------------------------------------------

    def start(self, job: CopyJob) -> None:
        """Queues a job for the next step."""
        self._to_start[job.direction].append(job)

    def take_results(self) -> JobResults:
        """Returns the ranks' results since the last call.

        A job has ended when `num_ranks` have reported it.
        """
        results, self._results = self._results, JobResults()
        return results

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> SwapMetadata:
        """Returns the jobs that were started since the last step."""
        outs, ins = (tuple(self._to_start[each]) for each in (Direction.OUT, Direction.IN))
        self._to_start = {each: [] for each in Direction}
        is_idle = scheduler_output.total_num_scheduled_tokens == 0
        return SwapMetadata(StepJobs(outs, ins, is_idle))

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Keeps the ranks' results for `take_results`."""
        meta = connector_output.kv_connector_worker_meta
        if isinstance(meta, SwapWorkerMeta):
            self._results.add(meta.results)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int, bool]:
        """Returns no tokens: there is nothing to load."""
        return 0, False

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Does nothing."""

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Does not keep the blocks of an ended request."""
        return False, None

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Does not keep the blocks of an ended request."""
        return False, None

    # -- the worker's half -------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Finds the blocks in the caches and allocates this rank's share of the pool."""
        views = block_views(self._kv_cache_config, kv_caches)
        self._copier = make_copier(views, self.num_slots)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Begins the step's jobs; vLLM calls this before the step touches any block."""
        assert isinstance(kv_connector_metadata, SwapMetadata)
        jobs = kv_connector_metadata.jobs
        self._must_wait = jobs.is_idle
        if jobs.outs or jobs.ins:
            assert self._copier is not None, "a step before the KV caches were registered"
            self._copier.start(jobs)

    def build_connector_worker_meta(self) -> SwapWorkerMeta | None:
        """Returns what has ended; in a step that computes nothing, all that was begun."""
        if self._copier is None:
            return None
        results = self._copier.take_results(wait=self._must_wait)
        has_news = results.num_ranks_done or results.failures
        return SwapWorkerMeta(results) if has_news else None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is loaded for the step itself."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded for the step itself."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing is saved of what the step computes."""

    def wait_for_save(self) -> None:
        """Nothing is saved of what the step computes."""


def _num_slots(options: WorkerOptions, bytes_per_block: int) -> int:
    """Returns the pool's size in blocks."""
    if options.offload_pool_blocks is not None:
        return options.offload_pool_blocks
    return options.prefill.offload_pool_bytes // bytes_per_block if bytes_per_block else 0
