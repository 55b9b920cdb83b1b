"""A decode engine's scheduler, made by vLLM itself; no model, no processes."""

from __future__ import annotations

import copy
import functools

from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.structured_output import StructuredOutputManager

from decode_worker.scheduler import DecodeScheduler
from tests.scheduling.engine_settings import (
    EngineSettings,
    engine_environment,
    kv_cache_config,
    model_path,
)


@functools.cache
def _config(max_model_len: int, token_budget: int, step_requests: int) -> VllmConfig:
    transfer = KVTransferConfig(
        kv_connector="FirstTokenNixlConnector",
        kv_connector_module_path="decode_worker.connector",
        kv_role="kv_consumer",
        kv_buffer_device="cpu",
        kv_connector_extra_config={"kv_lease_duration": 10},
        kv_load_failure_policy="fail",
    )
    with engine_environment():
        return AsyncEngineArgs(
            model=str(model_path()),
            enforce_eager=True,
            enable_prefix_caching=True,
            async_scheduling=False,
            scheduling_policy="priority",
            max_num_batched_tokens=token_budget,
            max_num_seqs=step_requests,
            max_model_len=max_model_len,
            kv_transfer_config=transfer,
        ).create_engine_config()


def create_decode_scheduler(settings: EngineSettings) -> DecodeScheduler:
    """Our scheduler, made the way EngineCore makes it."""
    config = copy.copy(
        _config(settings.max_model_len, settings.token_budget, settings.step_requests)
    )
    config.cache_config = copy.copy(config.cache_config)
    config.cache_config.block_size = settings.block_size
    config.cache_config.num_gpu_blocks = settings.num_blocks
    config.additional_config = settings.options.to_additional_config()
    with engine_environment():
        return DecodeScheduler(
            vllm_config=config,
            kv_cache_config=kv_cache_config(settings),
            structured_output_manager=StructuredOutputManager(config),
            block_size=settings.block_size,
            hash_block_size=settings.block_size,
            log_stats=True,
        )
