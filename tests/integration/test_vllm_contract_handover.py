"""Names of vLLM's inside that the streamed hand-over touches; see test_vllm_contract.py."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from tests.integration.test_vllm_contract import require, require_parameters, source


def test_schedulers() -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    require(
        Scheduler,
        "_update_from_kv_xfer_finished",
        "_inflight_prefill_reserved_blocks",
        "finished_recving_kv_req_ids",
        "deferred_waiting",
        "waiting",
        "running",
        "requests",
        "kv_cache_manager",
        "kv_cache_config",
    )
    assert issubclass(AsyncScheduler, Scheduler)
    # A fetch that was aborted under its read is freed where the read's end is reported.
    assert "_free_blocks" in source(Scheduler._update_from_kv_xfer_finished)


def test_the_connectors_halves() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_scheduler import (
        NixlBaseConnectorScheduler,
    )
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_worker import (
        NixlBaseConnectorWorker,
    )
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import (
        NixlPullConnectorScheduler,
    )

    require(
        NixlBaseConnectorScheduler,
        "_reqs_in_batch",
        "_reqs_need_send",
        "_kv_lease_duration",
        "on_new_request",
    )
    # What is about to be read: request, blocks, blocks that were here, whether it is awaited.
    require(NixlPullConnectorScheduler, "build_connector_meta")
    pulls = source(NixlPullConnectorScheduler.update_state_after_alloc)
    assert "self._reqs_need_recv[request.request_id] = (" in pulls
    built = source(NixlBaseConnectorScheduler.build_connector_meta)
    assert "self._reqs_need_recv.clear()" in built
    require(
        NixlBaseConnectorWorker,
        "_recving_metadata",
        "_invalid_block_ids",
        "_engine_clock_offset",
        "_lease_extension",
    )
    # What an offer's stand-in for a request has to have.
    finished = source(NixlPullConnectorScheduler.request_finished)
    for name in ("kv_transfer_params", "status", "request_id", "num_computed_tokens"):
        assert f"request.{name}" in finished
    # The reader's deadline is by the same clock as the lease.
    assert "time.perf_counter()" in finished


def test_samples_travel_with_a_step_and_bad_reads_fail() -> None:
    from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin

    fields = KVConnectorOutput.__dataclass_fields__
    assert {"finished_recving", "failed_recving", "kv_connector_worker_meta"} <= fields.keys()
    assert "kv_connector_worker_meta.aggregate" in source(KVOutputAggregator.aggregate).replace(
        "\n", ""
    ).replace(" ", "")
    update = source(Scheduler.update_from_output)
    # Failed reads end their requests before reads that have ended are looked at.
    failed, ended = "_handle_failed_recving(", "_update_from_kv_xfer_finished("
    assert 0 < update.index(failed) < update.index(ended)
    # Samples are begun behind the forward pass, while the step's metadata is bound.
    step = source(KVConnectorModelRunnerMixin._get_kv_connector_output)
    order = ["yield output", "get_transfer_results(", "build_connector_worker_meta(", "clear_conn"]
    assert order == sorted(order, key=step.index)
    require(Scheduler, "_build_kv_connector_meta")


def test_the_block_pool() -> None:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue

    require(BlockPool, "free_blocks", "touch", "blocks", "free_block_queue", "get_num_free_blocks")
    require(KVCacheManager, "get_computed_blocks", "cache_blocks", "get_blocks", "enable_caching")
    require(FreeKVCacheBlockQueue, "fake_free_list_head", "fake_free_list_tail")
    require_parameters(BlockPool.free_blocks, "ordered_blocks")


def test_figures_of_an_answer() -> None:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.metrics.stats import PrefillStats

    assert "prefill_stats" in EngineCoreOutput.__struct_fields__
    require(PrefillStats, "num_local_cached_tokens")


def test_both_roles_listen_with_ours() -> None:
    """A connector that forgot to ask for it would have vLLM's, which any message ends."""
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlConnector

    from prefill_worker.swap_connector import find_connector
    from stream2llm.engine import side_channel
    from tests.scheduling.decode_settings import create_decode_scheduler
    from tests.scheduling.engine_settings import EngineSettings, create_scheduler

    settings = EngineSettings()
    for scheduler in (create_scheduler(settings), create_decode_scheduler(settings)):
        connector = find_connector(scheduler.connector, NixlConnector)
        assert connector.connector_scheduler._nixl_handshake_listener is side_channel.listen
        scheduler.shutdown()


def test_the_side_channel() -> None:
    """Ours replaces the thread's function, and answers the one question as vLLM's reader asks it."""
    import msgspec
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_scheduler import (
        NixlBaseConnectorScheduler,
    )
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_worker import (
        NixlBaseConnectorWorker,
    )
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import GET_META_MSG

    from stream2llm.engine import side_channel

    start = source(NixlBaseConnectorScheduler.set_xfer_handshake_metadata)
    assert "target=self._nixl_handshake_listener," in start
    require_parameters(
        NixlBaseConnectorScheduler._nixl_handshake_listener,
        "encoded_data",
        "ready_event",
        "stop_event",
        "host",
        "port",
    )
    question = msgspec.msgpack.encode((GET_META_MSG, 2, 3))
    assert len(question) <= side_channel.MAX_QUESTION_BYTES
    assert side_channel.rank_asked_for([b"", question]) == (2, 3)
    asks = source(NixlBaseConnectorWorker._nixl_handshake)
    assert "(GET_META_MSG, remote_pp_rank, remote_rank)" in asks
    assert "assert len(reply_parts) == 2" in asks
