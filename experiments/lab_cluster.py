"""The cluster of live experiments on CPUs: a small random model, one worker of each role."""

from __future__ import annotations

from typing import Any

from stream2llm.cluster.config import ClusterConfig, parse_config
from stream2llm.models.store import ensure_random_llama


def lab_cluster(
    source: str,
    *,
    max_model_len: int,
    max_num_seqs: int,
    prefill: dict[str, Any] | None = None,
    **sections: Any,
) -> ClusterConfig:
    """Returns its configuration.

    `source` names the experiment in errors. `prefill` adds options to that section; `sections`
    are further ones. Raises InvalidRequestError for what the configuration does not allow.
    """
    engine = {
        "dtype": "bfloat16",
        "enforce_eager": True,
        "block_size": 32,
        "max_model_len": max_model_len,
        "max_num_batched_tokens": 1024,
        "max_num_seqs": max_num_seqs,
    }
    worker = {"engine": engine, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    raw = {
        "model": str(ensure_random_llama("fast")),
        "router": {"port": 0},
        "controller": {"http_port": 0},
        "prefill": {**worker, **(prefill or {})},
        "decode": worker,
        **sections,
    }
    return parse_config(raw, source=source)
