"""Every name of vLLM's inside that we touch, so that a new version fails here, in words.

`Scheduler` and the NIXL connector are no public interfaces; we pin vLLM 0.32.0.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from typing import Any

import pytest

vllm = pytest.importorskip("vllm")


def source(owner: Any) -> str:
    return inspect.getsource(owner)


def require(owner: Any, *names: str) -> None:
    """Attributes of a class, or names that its source assigns to `self`."""
    text = source(owner)
    for name in names:
        found = hasattr(owner, name) or f"self.{name}" in text
        assert found, f"{owner.__module__}.{owner.__qualname__} has no {name!r} any more"


def require_parameters(function: Any, *names: str) -> None:
    parameters = inspect.signature(function).parameters
    for name in names:
        assert name in parameters, f"{function.__qualname__} takes no {name!r} any more"


def test_the_version_is_the_pinned_one() -> None:
    assert vllm.__version__.startswith("0.32.0")


def test_scheduler() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    require(
        Scheduler,
        "schedule",
        "update_from_output",
        "add_request",
        "finish_requests",
        "get_num_unfinished_requests",
        "has_finished_requests",
        "get_request_counts",
        "_reserve_prefill_lookahead",
        "_enqueue_waiting_request",
        "_connector_finished",
        "_free_blocks",
        "_inflight_prefills",
        "connector",
        "vllm_config",
        "requests",
        "running",
        "waiting",
        "kv_holding_waiting",
        "deferred_waiting",
        "finished_req_ids",
        "reset_preempted_req_ids",
        "use_v2_model_runner",
        "kv_cache_manager",
        "max_num_scheduled_tokens",
        "max_num_running_reqs",
        "max_num_active_reqs",
        "_get_local_prefix_cache_hit",
        "block_size",
        "hash_block_size",
        "log_stats",
    )
    require_parameters(Scheduler.schedule, "throttle_prefills")
    require_parameters(
        Scheduler._reserve_prefill_lookahead, "request", "num_computed_tokens", "num_new_tokens"
    )


def test_the_base_class_caps_every_request_through_the_hook_we_use() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    calls = source(Scheduler.schedule).count("self._reserve_prefill_lookahead(")
    assert calls == 2, "schedule() asks the hook once for running and once for waiting requests"


def test_the_base_class_looks_up_the_prefix_cache_through_the_hook_we_use() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    text = source(Scheduler.schedule)
    assert text.count("self._get_local_prefix_cache_hit(request)") == 1
    # It looks up nothing for a request that has computed tokens.
    assert "if request.num_computed_tokens == 0:" in text


def test_structured_outputs() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.structured_output.request import StructuredOutputRequest

    from stream2llm.engine.grammar_state import _Replay

    require(Scheduler, "_handle_blocked_waiting_request", "structured_output_manager")
    assert "self.structured_output_manager.accept_tokens(" in source(Scheduler.update_from_output)
    assert "stop_reason=request.stop_reason" in source(Scheduler.update_from_output)
    # A grammar begins to be compiled before the scheduler has the request, event requests' too.
    assert "grammar_init(req)" in source(EngineCore.preprocess_add_request)
    require_parameters(StructuredOutputManager.accept_tokens, "request", "new_token_ids")
    require(StructuredOutputRequest, "grammar", "_grammar")
    # What an automaton reads of the request that it is asked for; `_Replay` stands for one.
    text = source(StructuredOutputManager.accept_tokens)
    text += source(StructuredOutputManager._get_constraint_bounds)
    asked = set(re.findall(r"\brequest\.(\w+)", text))
    assert asked <= {field.name for field in dataclasses.fields(_Replay)}


def test_queues() -> None:
    from vllm.v1.core.sched.request_queue import FCFSRequestQueue

    require(FCFSRequestQueue, "pop_request", "add_request", "__bool__")


def test_the_lease_that_we_end() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl import (
        NixlConnector,
        NixlPullConnectorScheduler,
    )

    require(NixlConnector, "connector_scheduler")
    assert "_reqs_need_send" in source(NixlPullConnectorScheduler.__mro__[1])


def test_settings_that_we_refuse() -> None:
    from vllm.config import CompilationConfig, CompilationMode, SchedulerConfig, VllmConfig

    fields = SchedulerConfig.__dataclass_fields__
    for name in (
        "async_scheduling",
        "scheduler_reserve_full_isl",
        "watermark",
        "long_prefill_token_threshold",
        "enable_chunked_prefill",
        "max_num_scheduled_tokens",
        "max_num_batched_tokens",
    ):
        assert name in fields, f"SchedulerConfig has no {name!r} any more"
    for name in ("mode", "compile_ranges_endpoints"):
        assert name in CompilationConfig.__dataclass_fields__
    assert CompilationMode.NONE.value == 0
    require(VllmConfig, "use_v2_model_runner")
    require(VllmConfig, "max_concurrent_batches")
    assert {"compilation_config", "additional_config"} <= VllmConfig.__dataclass_fields__.keys()


def test_the_engine_sleeps_only_without_requests() -> None:
    """Idle sessions cost no step because these two say so."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCoreProc

    text = source(Scheduler.has_requests)
    assert "self.has_unfinished_requests()" in text
    assert "self.has_finished_requests()" in text
    assert "self.scheduler.has_requests()" in source(EngineCoreProc)


def test_the_base_class_tells_connectors_of_finished_requests_through_the_hook_we_use() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    assert "self._connector_finished(request)" in source(Scheduler._free_request)
    before, _, after = source(Scheduler.update_from_output).partition("_handle_stopped_request(")
    assert "finish_reason = request.get_finished_reason()" in before
    assert "self._free_request(request)" in after


def test_request() -> None:
    from vllm.v1.request import Request, RequestStatus

    require(
        Request,
        "_all_token_ids",
        "prompt_token_ids",
        "num_prompt_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "block_hashes",
        "update_block_hashes",
        "sampling_params",
        "kv_transfer_params",
        "max_tokens",
        "prefill_stats",
        "client_index",
        "is_finished",
        "record_event",
        "take_events",
        "num_tokens",
        "status",
    )
    for name in ("WAITING", "RUNNING", "FINISHED_STOPPED", "FINISHED_ABORTED"):
        assert hasattr(RequestStatus, name)

    from vllm.v1.engine import EngineCoreEventType
    from vllm.v1.metrics.stats import PrefillStats

    assert hasattr(EngineCoreEventType, "PREEMPTED")
    parameters = list(inspect.signature(PrefillStats.set).parameters)
    assert parameters[1:] == [
        "num_prompt_tokens",
        "num_local_cached_tokens",
        "num_external_cached_tokens",
    ]


def test_block_managers() -> None:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.single_type_kv_cache_manager import (
        FullAttentionManager,
        SingleTypeKVCacheManager,
    )

    require(
        KVCacheManager,
        "get_computed_blocks",
        "empty_kv_cache_blocks",
        "prefix_cache_lookup_enabled",
        "allocate_slots",
        "free",
        "record_prefix_cache_stats",
        "coordinator",
        "block_pool",
    )
    require_parameters(
        KVCacheManager.allocate_slots,
        "num_new_tokens",
        "num_new_computed_tokens",
        "new_computed_blocks",
    )
    require(SingleTypeKVCacheManager, "req_to_blocks", "num_cached_block", "block_size")
    require(
        BlockPool,
        "is_block_writable",
        "free_blocks",
        "get_num_free_blocks",
        "get_cached_block",
        "free_block_queue",
        "blocks",
    )
    assert issubclass(FullAttentionManager, SingleTypeKVCacheManager)


def test_a_request_announced_as_new_again_refreshes_the_runners_copy() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    update = source(GPUModelRunner._update_streaming_request)
    for name in ("prompt_token_ids", "sampling_params", "block_ids", "num_computed_tokens"):
        assert f"req_state.{name} = new_req_data.{name}" in update
    assert "self._update_streaming_request(" in source(GPUModelRunner._update_states)


def test_the_runner_turns_generators_of_discarded_tokens_back() -> None:
    """What `stream2llm/engine/cpu_worker.py` is there for; gone, and so may it be."""
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert "gen.set_offset(" in source(GPUModelRunner)
    require(GPUModelRunner, "discard_request_mask", "input_batch", "sample_tokens")
    require(CPUWorker, "init_device", "model_runner")


def test_engine_front_end() -> None:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor

    require(
        AsyncLLM,
        "from_engine_args",
        "input_processor",
        "output_processor",
        "engine_core",
        "output_handler",
        "errored",
        "dead_error",
        "abort",
        "notify_kv_transfer_request_rejected",
        "get_supported_tasks",
        "shutdown",
        "_run_output_handler",
        "is_paused",
    )
    parameters = list(inspect.signature(OutputProcessor.add_request).parameters)
    assert parameters[1:6] == ["request", "prompt", "parent_req", "request_index", "queue"]
    assert "req_state.queue.put(request_output)" in source(OutputProcessor.process_outputs)
    for name in ("request_id", "new_token_ids", "kv_transfer_params"):
        assert name in EngineCoreOutput.__struct_fields__
    for name in ("prompt_token_ids", "sampling_params", "external_req_id"):
        assert name in EngineCoreRequest.__struct_fields__


def test_nixl_connector() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl import (
        NixlConnector,
        NixlPullConnectorScheduler,
    )

    require_parameters(NixlConnector.get_num_new_matched_tokens, "request", "num_computed_tokens")
    finished = source(NixlPullConnectorScheduler.request_finished)
    for name in ("remote_block_ids", "remote_engine_id", "remote_num_tokens", "do_remote_prefill"):
        assert f"{name}=" in finished
    # An aborted request, and only that, is let go at once.
    assert "RequestStatus.FINISHED_LENGTH_CAPPED" in finished
    assert "FINISHED_ABORTED" not in finished


def test_connectors_for_swapping() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1 import base
    from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheTensor
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    require(MultiConnector, "sub_connectors")
    require(
        base.KVConnectorBase_V1,
        "handle_preemptions",
        "register_kv_caches",
        "build_connector_meta",
        "build_connector_worker_meta",
        "update_connector_output",
        "requires_kv_delivery",
    )
    # Copies begin before the step touches a block, also in steps that compute nothing.
    execute = source(GPUModelRunner.execute_model)
    assert execute.index("handle_preemptions") < execute.index("_update_states(")
    assert "kv_connector_worker_meta" in KVConnectorOutput.__dataclass_fields__
    require_parameters(KVCacheManager.allocate_slots, "num_new_tokens", "delay_cache_blocks")
    require_parameters(KVCacheManager.cache_blocks, "request", "num_computed_tokens")
    for name in ("layers", "offset", "layer_stride", "block_stride"):
        assert name in KVCacheTensor.__dataclass_fields__
    require(KVCacheConfig, "needs_kv_cache_zeroing")


def test_logits_processors_come_before_the_penalties() -> None:
    from vllm.v1.sample.sampler import Sampler

    apply = source(Sampler.apply_logits_processors)
    assert apply.index("processor.apply(logits)") < apply.index("self.apply_penalties(")


@pytest.mark.slow
def test_nixls_progress_thread_sleeps_where_we_ask_it_to() -> None:
    """An agent as the stock API makes it keeps a whole core busy; one of ours does not."""
    program = (
        "import os, time; from nixl._api import nixl_agent, nixl_agent_config\n"
        "from stream2llm.engine.cpu_worker import let_progress_thread_sleep\n"
        "let_progress_thread_sleep(10_000)\n"
        "agent = nixl_agent('quiet', nixl_agent_config(num_threads=4))\n"
        "before = time.process_time(); time.sleep(1.0)\n"
        "print('busy', time.process_time() - before, flush=True); os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert float(done.stdout.rpartition("busy ")[2]) < 0.3


def test_the_main_loop_answers_between_two_steps() -> None:
    """So an answer is a sign of life, and takes no longer than the step that runs."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCore, EngineCoreProc
    from vllm.v1.engine.output_processor import OutputProcessor

    assert "is_scheduler_paused_async" in source(AsyncLLM.is_paused)
    require(EngineCore, "is_scheduler_paused")
    require(OutputProcessor, "propagate_error")
    loop = source(EngineCoreProc).partition("def run_busy_loop")[2]
    assert loop.index("_process_input_queue") < loop.index("_process_engine_step")
    handle = source(EngineCoreProc._handle_client_request)
    assert "EngineCoreRequestType.UTILITY" in handle
    for step in (EngineCore.step, EngineCore.step_with_batch_queue):
        # Each step that is scheduled is ended, in order.
        assert source(step).count("scheduler.schedule(") == 1
        assert source(step).count("scheduler.update_from_output(") == 1


def test_a_reader_refuses_another_engine_at_the_same_address() -> None:
    """A successor may get the port of an incarnation that was lost."""
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_worker import (
        NixlBaseConnectorWorker,
    )

    handshake = source(NixlBaseConnectorWorker._nixl_handshake)
    assert "metadata.engine_id != expected_engine_id" in handshake
