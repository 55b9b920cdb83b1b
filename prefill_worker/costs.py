"""The cost model that this engine's scheduler starts with.

Adapter from vLLM's configuration to `cost_profiles.node`. Runs inside vLLM's
EngineCore process.

vLLM calls every CPU "cpu", so a model's shipped profile is found on all of them,
although their speeds differ by several times. Such a profile is a start, which
online calibration corrects.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from vllm import envs
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.utils.cpu_resource_utils import parse_id_list

from cost_profiles.correction import CorrectedCostModel, Origin
from cost_profiles.model import CostModel
from cost_profiles.node import Node, start_for
from cost_profiles.roofline import TransformerShape
from cost_profiles.types import DType, ModelGeometry

# A child of vLLM's logger: other loggers have no handler in its process.
_log = init_logger("vllm.stream2llm.costs")


def costs_for(vllm_config: Any, profile_path: str = "") -> CorrectedCostModel:
    """Returns this node's costs, subject to online calibration; logs their source.

    `profile_path` is a file or a directory of profiles; see `cost_profiles.node`.
    Raises ProfileError for a file that cannot be used or does not fit.
    """
    node = node_of(vllm_config, current_platform.get_device_name())
    start = start_for(node, profile_path)
    _log.info("costs of recomputing and swapping: %s", start.reason)
    return CorrectedCostModel(CostModel(start.profile), Origin.of(start.profile))


def node_of(vllm_config: Any, device_name: str) -> Node:
    """Returns from a VllmConfig what costs depend on."""
    return Node(
        device_name=device_name,
        shape=shape_of(vllm_config),
        tensor_parallel_size=vllm_config.parallel_config.tensor_parallel_size,
        block_size=vllm_config.cache_config.block_size,
        token_budget=vllm_config.scheduler_config.max_num_batched_tokens,
        num_cpu_cores=num_cpu_cores(),
    )


def shape_of(vllm_config: Any) -> TransformerShape:
    """Returns the model's sizes; a mixture of experts counts the experts active per token."""
    model, text = vllm_config.model_config, vllm_config.model_config.hf_text_config
    geometry = ModelGeometry(
        name=model_name(model.model),
        num_layers=model.get_total_num_hidden_layers(),
        num_kv_heads=model.get_total_num_kv_heads(),
        head_size=model.get_head_size(),
        dtype=kv_dtype(vllm_config.cache_config.cache_dtype, model.dtype),
    )
    hidden_size = model.get_hidden_size()
    return TransformerShape(
        geometry=geometry,
        hidden_size=hidden_size,
        intermediate_size=_intermediate_size(text, hidden_size),
        num_query_heads=text.num_attention_heads,
    )


def _intermediate_size(text_config: Any, hidden_size: int) -> int:
    per_expert = _mean(getattr(text_config, "moe_intermediate_size", None))
    if per_expert:
        return int(per_expert * (_mean(getattr(text_config, "num_experts_per_tok", None)) or 1))
    # Models that do not say use four times the width.
    return int(_mean(getattr(text_config, "intermediate_size", None)) or 4 * hidden_size)


def _mean(value: Any) -> float:
    """Returns a number, or the mean of one per layer; 0 for None."""
    values = [each for each in (value if isinstance(value, list | tuple) else [value]) if each]
    return fmean(values) if values else 0.0


def kv_dtype(cache_dtype: str, model_dtype: Any) -> DType:
    """Returns the type of a KV value. Packed types count as fp8, the smallest in a profile."""
    name = str(model_dtype).removeprefix("torch.") if cache_dtype == "auto" else cache_dtype
    for known in get_args(DType):
        if known == name:
            return known  # type: ignore[no-any-return]
    return "fp8"


def model_name(model: str) -> str:
    """Returns the last part of a path or hub name, or the name in a hub's cache directory."""
    path = Path(model)
    for part in path.parts:
        if part.startswith("models--") and "snapshots" in path.parts:
            return part.rpartition("--")[2]
    return path.name


def num_cpu_cores() -> int:
    """Returns the number of cores of a CPU engine's first rank in this process's environment."""
    binding = envs.VLLM_CPU_OMP_THREADS_BIND
    if binding in ("auto", "nobind"):
        return len(os.sched_getaffinity(0))
    return len(parse_id_list(binding.split("|")[0]))
