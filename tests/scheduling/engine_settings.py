"""The parts of an engine that a scheduler needs, made by vLLM itself; no model, no processes."""

from __future__ import annotations

import atexit
import copy
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from prefill_worker.engine import FIXED_ARGS
from prefill_worker.kv_transfer import SWAP_ONLY, kv_transfer
from prefill_worker.local_engine import ENVIRONMENT
from prefill_worker.scheduler import PrefillScheduler
from stream2llm.engine.cache_events import kv_events
from stream2llm.serving.settings.worker_options import (
    HandoverOptions,
    PrefillOptions,
    WorkerOptions,
)
from tests.tiny_model import make_tiny_model

_SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def worker_options(
    *,
    min_offer_tokens: int = 256,
    offload_pool_blocks: int | None = None,
    kv_digest: bool = True,
    **prefill: Any,
) -> WorkerOptions:
    """A worker's options; evicted KV is computed again unless a test says otherwise."""
    return WorkerOptions(
        prefill=PrefillOptions(**{"preemption": "recompute", **prefill}),
        handover=HandoverOptions(min_offer_tokens=min_offer_tokens, kv_digest=kv_digest),
        offload_pool_blocks=offload_pool_blocks,
    )


@dataclass(frozen=True)
class EngineSettings:
    """What a test may choose; the rest is as in `prefill_worker/engine.py`."""

    prefix_caching: bool = True
    # With vLLM's own NIXL connector (the scheduler's half of it).
    leases: bool = True
    # With our swap connector (the scheduler's half of it), if there are any.
    offload_pool_blocks: int = 0
    block_size: int = 4
    # One of them is vLLM's null block.
    num_blocks: int = 25
    token_budget: int = 24
    step_requests: int = 3
    max_model_len: int = 128
    # Whether the scheduler takes vLLM's model runner for V2.
    has_runner_v2: bool = False
    options: WorkerOptions = field(default_factory=worker_options)
    # Further engine arguments, for settings that must be refused.
    engine_args: Mapping[str, Any] = field(default_factory=dict, hash=False)


@contextmanager
def engine_environment() -> Iterator[None]:
    """The environment variables that a prefill worker sets before it starts vLLM."""
    with mock.patch.dict(os.environ, ENVIRONMENT):
        yield


@functools.cache
def _model_dir() -> tempfile.TemporaryDirectory[str]:
    holder = tempfile.TemporaryDirectory(prefix="stream2llm-no-weights-")
    atexit.register(holder.cleanup)  # left to its finalizer, it warns at exit
    path = make_tiny_model(Path(holder.name) / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **_SHAPE}))
    return holder


def model_path() -> Path:
    """A directory with a model's configuration; it ends with the process."""
    return Path(_model_dir().name) / "model"


def _kv_transfer(settings: EngineSettings) -> KVTransferConfig | None:
    swaps = settings.offload_pool_blocks > 0
    if settings.leases:
        nixl = {
            "kv_buffer_device": "cpu",
            "kv_connector_extra_config": {"kv_lease_duration": 10},
            "kv_load_failure_policy": "fail",
        }
        return KVTransferConfig(**kv_transfer(nixl, swaps=swaps))
    return KVTransferConfig(**SWAP_ONLY) if swaps else None


def create_config(settings: EngineSettings) -> VllmConfig:
    """vLLM's configuration from engine arguments, as an engine makes it; takes a second."""
    fixed: dict[str, Any] = {
        **FIXED_ARGS,
        "enforce_eager": True,
        "enable_prefix_caching": settings.prefix_caching,
        "max_num_batched_tokens": settings.token_budget,
        "max_num_seqs": settings.step_requests,
        "max_model_len": settings.max_model_len,
        "kv_transfer_config": _kv_transfer(settings),
        "kv_events_config": kv_events(),
    }
    args = {**fixed, **settings.engine_args}
    with engine_environment():
        return AsyncEngineArgs(model=str(model_path()), **args).create_engine_config()


_configs: dict[str, VllmConfig] = {}


def _config_for(settings: EngineSettings) -> VllmConfig:
    """A copy of one that was made once for the arguments that matter to vLLM."""
    key = repr((settings, sorted(settings.engine_args.items())))
    if key not in _configs:
        _configs[key] = create_config(settings)
    config = copy.copy(_configs[key])
    config.cache_config = copy.copy(config.cache_config)
    # EngineCore sets both after it has asked the model.
    config.cache_config.block_size = settings.block_size
    config.cache_config.num_gpu_blocks = settings.num_blocks
    pool = {"offload_pool_blocks": settings.offload_pool_blocks}
    config.additional_config = settings.options.model_copy(update=pool).to_additional_config()
    return config


def kv_cache_config(settings: EngineSettings) -> KVCacheConfig:
    """One group of full attention, with as many blocks as the test wants."""
    spec = FullAttentionSpec(
        block_size=settings.block_size, num_kv_heads=2, head_size=32, dtype=torch.float32
    )
    group = KVCacheGroupSpec(["model.layers.0.self_attn"], spec)
    return KVCacheConfig(settings.num_blocks, [], [group])


def create_scheduler(
    settings: EngineSettings, config: VllmConfig | None = None
) -> PrefillScheduler:
    """Our scheduler, made the way EngineCore makes it."""
    config = config or _config_for(settings)
    # vLLM refuses V2 without Triton, which no scheduler needs.
    runner = mock.patch.object(VllmConfig, "use_v2_model_runner", settings.has_runner_v2)
    with engine_environment(), runner:
        return PrefillScheduler(
            vllm_config=config,
            kv_cache_config=kv_cache_config(settings),
            structured_output_manager=StructuredOutputManager(config),
            block_size=settings.block_size,
            hash_block_size=settings.block_size,
            log_stats=True,
        )


@functools.cache
def _hash_function() -> Callable[[Any], bytes]:
    function: Callable[[Any], bytes] = get_hash_fn_by_name("sha256")
    init_none_hash(function)
    return function


def block_hasher(settings: EngineSettings) -> Callable[[Request], list[Any]] | None:
    """As in EngineCore: caches and transfers must know blocks by content."""
    if not (settings.prefix_caching or settings.leases or settings.offload_pool_blocks):
        return None
    hasher: Callable[[Request], list[Any]] = get_request_block_hasher(
        settings.block_size, _hash_function()
    )
    return hasher
