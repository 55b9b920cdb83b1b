"""The cluster of live experiments on CPUs: a small random model, few workers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import parse_config
from stream2llm.models.catalogue import PresetName
from stream2llm.models.store import ensure_random_llama
from stream2llm.serving.http.exposition import merged, parse
from stream2llm.serving.http.own_http import open_url
from stream2llm.serving.settings.worker_spec import WorkerAddress


def counted(
    http_address: str, metric: str, label: str, security: ClientSecurity = PLAIN
) -> Counter[str]:
    """A counter so far over all processes of the cluster, by the values of a label."""
    groups = json.loads(_get(f"http://{http_address}/sd", security))
    targets = [target for group in groups for target in group["targets"]]
    pages = (parse(_get(f"http://{target}/metrics", security), (metric,)) for target in targets)
    sums = merged(pages).by_label(metric, label)
    return Counter({value: int(count) for value, count in sums.items()})


def _get(url: str, security: ClientSecurity) -> str:
    with open_url(url, 30, security) as response:
        text: str = response.read().decode()
        return text


def lab_cluster(
    source: str,
    *,
    max_model_len: int,
    max_num_seqs: int,
    preset: PresetName = "fast",
    engine: Mapping[str, Any] = MappingProxyType({}),
    prefill: Mapping[str, Any] = MappingProxyType({}),
    decode: Mapping[str, Any] = MappingProxyType({}),
    mixed: Mapping[str, Any] | None = None,
    **sections: Any,
) -> ClusterConfig:
    """Returns its configuration, by default of one prefill and one decode worker.

    `source` names the experiment in errors. `engine` adds engine arguments of all roles,
    `prefill` and `decode` add options to these sections; with `mixed` there is that section instead
    of both; `sections` are others. Raises InvalidRequestError for what the configuration does not
    allow.
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
        **sections,
    }
    if mixed is None:
        raw |= {"prefill": {**worker, **prefill}, "decode": {**worker, **decode}}
    else:
        raw["mixed"] = {**worker, **mixed}
    return parse_config(raw, source=source)


def workers(cluster: Cluster, role: str) -> list[WorkerAddress]:
    """The addresses of one role's workers that have started."""
    replicas = [r for r in cluster.status()["replicas"] if r["role"] == role]
    return [WorkerAddress(**r["address"]) for r in replicas if r["address"]]
