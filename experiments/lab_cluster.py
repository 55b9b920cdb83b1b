"""The cluster of live experiments on CPUs: a small random model, few workers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import parse_config
from stream2llm.models.catalogue import PresetName
from stream2llm.models.store import ensure_random_llama
from stream2llm.serving.settings.worker_spec import WorkerAddress


def lab_cluster(
    source: str,
    *,
    max_model_len: int,
    max_num_seqs: int,
    preset: PresetName = "fast",
    engine: Mapping[str, Any] = MappingProxyType({}),
    prefill: Mapping[str, Any] = MappingProxyType({}),
    decode: Mapping[str, Any] = MappingProxyType({}),
    **sections: Any,
) -> ClusterConfig:
    """Returns its configuration, by default of one worker of each role.

    `source` names the experiment in errors. `engine` adds engine arguments of both roles,
    `prefill` and `decode` add options to these sections; `sections` are others. Raises InvalidRequestError for what the configuration does not allow.
    """
    arguments = {
        "dtype": "bfloat16",
        "enforce_eager": True,
        "block_size": 32,
        "max_model_len": max_model_len,
        "max_num_batched_tokens": 1024,
        "max_num_seqs": max_num_seqs,
        **engine,
    }
    worker = {"engine": arguments, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    raw = {
        "model": str(ensure_random_llama(preset)),
        "router": {"port": 0},
        "controller": {"http_port": 0},
        "prefill": {**worker, **prefill},
        "decode": {**worker, **decode},
        **sections,
    }
    return parse_config(raw, source=source)


def workers(cluster: Cluster, role: str) -> list[WorkerAddress]:
    """The addresses of one role's workers that have started."""
    replicas = [r for r in cluster.status()["replicas"] if r["role"] == role]
    return [WorkerAddress(**r["address"]) for r in replicas if r["address"]]
