"""The two halves of the swap connector, without an engine between them."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec, KVCacheTensor, MambaSpec
from vllm.v1.outputs import KVConnectorOutput

from prefill_worker.swap_connector import (
    SwapConnector,
    SwapMetadata,
    SwapWorkerMeta,
    find_connector,
)
from prefill_worker.swap_jobs import CopyJob, CopyTime, Direction, JobResults, StepJobs
from stream2llm.serving.settings.router_spec import GIB
from stream2llm.serving.settings.worker_options import PrefillOptions, WorkerOptions

# One layer, 4 blocks of 16 bytes.
CACHE = KVCacheConfig(4, [KVCacheTensor(64, ["a"], layer_stride=64, block_stride=16)], [])
OUT = CopyJob(1, Direction.OUT, (2, 1), (0, 1))
IN = CopyJob(2, Direction.IN, (3,), (0,))


def a_connector(
    *,
    cache: KVCacheConfig = CACHE,
    tp: int = 1,
    pp: int = 1,
    pool_bytes: int = 0,
    pool_blocks: int | None = None,
) -> SwapConnector:
    options = WorkerOptions(
        prefill=PrefillOptions(offload_pool_gib=pool_bytes / GIB), offload_pool_blocks=pool_blocks
    )
    config: Any = SimpleNamespace(
        kv_transfer_config=KVTransferConfig(kv_connector="SwapConnector", kv_role="kv_producer"),
        parallel_config=SimpleNamespace(pipeline_parallel_size=pp, world_size=tp * pp),
        additional_config=options.to_additional_config(),
    )
    return SwapConnector(config, KVConnectorRole.SCHEDULER, cache)


def metadata(connector: SwapConnector, num_tokens: int = 5) -> SwapMetadata:
    """What the next step brings, as a rank receives it."""
    step: Any = SimpleNamespace(total_num_scheduled_tokens=num_tokens)
    sent = connector.build_connector_meta(step)
    received: SwapMetadata = pickle.loads(pickle.dumps(sent))
    return received


def report(connector: SwapConnector, *ranks: JobResults) -> None:
    """The ranks' results of one step, put together as vLLM does."""
    first, *others = (pickle.loads(pickle.dumps(SwapWorkerMeta(rank))) for rank in ranks)
    for other in others:
        first = first.aggregate(other)
    connector.update_connector_output(KVConnectorOutput(kv_connector_worker_meta=first))


def test_the_pool_is_shared_by_all_ranks() -> None:
    assert a_connector(pool_bytes=100).num_slots == 6
    two = a_connector(pool_bytes=100, tp=2)
    assert (two.bytes_per_block, two.num_slots, two.num_ranks) == (32, 3, 2)
    assert a_connector(pool_bytes=100, pool_blocks=9).num_slots == 9
    assert a_connector().num_slots == 0


def test_without_kv_memory_the_pool_is_counted_in_blocks() -> None:
    nothing = KVCacheConfig(4, [], [])
    assert a_connector(cache=nothing, pool_bytes=100).num_slots == 0
    counted = a_connector(cache=nothing, pool_blocks=9)
    assert (counted.bytes_per_block, counted.num_slots) == (0, 9)


def test_pipeline_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="pipeline_parallel_size=1"):
        a_connector(pp=2)


def test_models_whose_new_blocks_are_cleared_are_refused() -> None:
    state = MambaSpec(block_size=16, shapes=((4,),), dtypes=(torch.float32,))
    cache = KVCacheConfig(4, [], [KVCacheGroupSpec(["a"], state)])
    with pytest.raises(ValueError, match="needs preemption: recompute"):
        a_connector(cache=cache)


def test_jobs_go_with_the_next_step_and_once() -> None:
    connector = a_connector(pool_blocks=2)
    connector.start(IN)
    connector.start(OUT)
    assert metadata(connector).jobs == StepJobs((OUT,), (IN,), is_idle=False)
    assert metadata(connector, num_tokens=0).jobs == StepJobs(is_idle=True)


def test_results_of_ranks_and_steps_are_added_up() -> None:
    connector = a_connector(pool_blocks=2, tp=2)
    slow, fast = (CopyTime(Direction.OUT, 2, seconds) for seconds in (0.5, 0.25))
    report(
        connector,
        JobResults({1: 1}, times={1: fast}),
        JobResults({1: 1, 2: 1}, {2: "no"}, times={1: slow}),
    )
    report(connector, JobResults({2: 1, 3: 1}, times={3: fast}))
    report(connector, JobResults({3: 1}, times={3: slow}))
    connector.update_connector_output(KVConnectorOutput())
    expected = JobResults({1: 2, 2: 2, 3: 2}, {2: "no"}, {1: slow, 3: slow})
    assert connector.take_results() == expected
    assert connector.take_results() == JobResults()


def test_a_rank_copies_when_the_step_begins() -> None:
    connector = a_connector(pool_blocks=2)
    memory = torch.arange(64, dtype=torch.int8)
    connector.register_kv_caches({"a": memory})
    assert connector.build_connector_worker_meta() is None
    connector.start(OUT)
    connector.start(IN)
    connector.handle_preemptions(metadata(connector))
    assert memory[48:].tolist() == list(range(32, 48))
    meta = connector.build_connector_worker_meta()
    assert meta.results.num_ranks_done == {1: 1, 2: 1}
    assert [time[:2] for time in meta.results.times.values()] == [
        (Direction.OUT, 2),
        (Direction.IN, 1),
    ]


def test_only_a_step_that_computes_nothing_waits() -> None:
    connector = a_connector(pool_blocks=2)
    waits = []

    class Copier:
        def start(self, jobs: StepJobs) -> None:
            assert jobs.outs

        def take_results(self, *, wait: bool) -> JobResults:
            waits.append(wait)
            return JobResults({1: 1}) if wait else JobResults()

    connector._copier = Copier()
    connector.start(OUT)
    for num_tokens, expected in ((5, None), (0, {1: 1}), (5, None)):
        connector.handle_preemptions(metadata(connector, num_tokens))
        meta = connector.build_connector_worker_meta()
        assert (meta.results.num_ranks_done if meta else None) == expected
    assert waits == [False, True, False]


def test_vllm_may_hold_it_in_another_connector() -> None:
    connector = a_connector()
    several: Any = SimpleNamespace(sub_connectors=[object(), connector])
    other: Any = object()
    assert find_connector(several, SwapConnector) is connector
    assert find_connector(connector, SwapConnector) is connector
    assert find_connector(other, SwapConnector) is None
    assert find_connector(None, SwapConnector) is None


def test_it_promises_vllm_nothing() -> None:
    connector, request = a_connector(), SimpleNamespace()
    assert connector.get_num_new_matched_tokens(request, 0) == (0, False)
    assert connector.request_finished_all_groups(request, ([1],)) == (False, None)
    assert connector.requires_kv_delivery is False
    assert connector.get_finished_count() is None
