"""Preflight of the machine: its ports, its cores, and its memory for CPU engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from stream2llm.api.errors import (
    InvalidRequestError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
)
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.worker_config import WorkerConfig
from stream2llm.models.store import resolve_model
from stream2llm.serving.settings.router_spec import GIB
from stream2llm.serving.system.ports import is_port_free

# Python, torch and vLLM in the three processes of one CPU engine (measured: 1.7 GiB).
ENGINE_OVERHEAD_BYTES = int(1.7 * GIB)
DEFAULT_MEMORY_UTILIZATION = 0.92  # vLLM's; of all memory, also on CPUs
_SPACE = "VLLM_CPU_KVCACHE_SPACE"  # whole GiB


def check_ports(config: ClusterConfig) -> None:
    """Every fixed port is free, and used once."""
    wanted: dict[int, str] = {}
    for key, host, port in _fixed_ports(config):
        if port in wanted:
            raise InvalidRequestError(f"{key} and {wanted[port]} both ask for port {port}")
        wanted[port] = key
        if not is_port_free("0.0.0.0" if host == "auto" else host, port):
            raise UnavailableError(
                f"port {port} on {host} is taken ({key});"
                " stop what listens there, or set another port",
                reason="PORT_TAKEN",
                field=key,
            )


def _fixed_ports(config: ClusterConfig) -> Iterator[tuple[str, str, int]]:
    router = config.router
    num_routers = 1 if router.one_per_node else router.replicas
    ranges = [
        ("router.port", router.host, router.port, num_routers),
        ("router.metrics_port", router.host, router.metrics_port, num_routers),
        ("controller.http_port", config.controller.host, config.controller.http_port, 1),
    ]
    if (gateway := config.gateway) is not None:
        num_gateways = 1 if gateway.one_per_node else gateway.replicas
        ranges.append(("gateway.port", gateway.host, gateway.port, num_gateways))
    for role, part in config.worker_sections:
        ranges.append((f"{role}.metrics_port", part.host, part.metrics_port, part.replicas))
    for key, host, first, count in ranges:
        for port in range(first, first + count) if first else ():
            yield key, host, port


def check_cores(config: ClusterConfig, cores: frozenset[int]) -> None:
    """Explicit core lists name cores that this process may use, for each replica."""
    for role, part in config.worker_sections:
        if part.cpu_bind in ("auto", "nobind") or part.num_gpus:
            continue
        replicas = part.cpu_bind.split(";")
        if len(replicas) not in (1, part.replicas):
            raise InvalidRequestError(
                f"{role}.cpu_bind names cores for {len(replicas)} replicas,"
                f" but {role}.replicas is {part.replicas}",
                field=f"{role}.cpu_bind",
            )
        missing = _cores_in(part.cpu_bind, role) - cores
        if missing:
            raise InvalidRequestError(
                f"{role}.cpu_bind: no such cores here: {sorted(missing)}"
                f" (this process may use {sorted(cores)})",
                field=f"{role}.cpu_bind",
            )


def _cores_in(cpu_bind: str, role: str) -> set[int]:
    cores: set[int] = set()
    for item in cpu_bind.replace(";", ",").replace("|", ",").split(","):
        first, _, last = item.strip().partition("-")
        try:
            cores |= set(range(int(first), int(last or first) + 1))
        except ValueError as error:
            raise InvalidRequestError(
                f"{role}.cpu_bind: {item.strip()!r} is neither a core nor a range like 0-3",
                field=f"{role}.cpu_bind",
            ) from error
    return cores


def check_memory(
    config: ClusterConfig, weights_bytes: int, available_bytes: int, total_bytes: int
) -> None:
    """The CPU engines fit into the memory that is available now."""
    parts = [
        (f"{part.replicas} {role}", part.replicas * _engine_bytes(part, weights_bytes, total_bytes))
        for role, part in config.worker_sections
        if not part.num_gpus
    ]
    needed = sum(size for _, size in parts)
    if needed <= available_bytes:
        return
    listing = ", ".join(f"{what}: {size / GIB:.1f} GiB" for what, size in parts)
    raise OverloadedError(
        f"too little memory: the engines need about {needed / GIB:.1f} GiB ({listing}),"
        f" {available_bytes / GIB:.1f} GiB are available; set VLLM_CPU_KVCACHE_SPACE (GiB)"
        " under the workers' env to less, or start fewer replicas. Without it, vLLM takes"
        f" {DEFAULT_MEMORY_UTILIZATION:.0%} of all memory for the KV cache of each",
        reason="TOO_LITTLE_MEMORY",
    )


def _engine_bytes(part: WorkerConfig, weights_bytes: int, total_bytes: int) -> int:
    """Returns the bytes of one CPU engine, with its KV cache."""
    return weights_bytes + ENGINE_OVERHEAD_BYTES + _kv_cache_bytes(part, total_bytes)


def _kv_cache_bytes(part: WorkerConfig, total_bytes: int) -> int:
    if part.engine.get("num_gpu_blocks_override"):
        return 0  # used for small caches
    if space := part.env.get(_SPACE, os.environ.get(_SPACE)):
        return int(_number(_SPACE, space, int) * GIB)
    if given := part.engine.get("kv_cache_memory_bytes"):
        return int(_number("engine.kv_cache_memory_bytes", given, int))
    share = part.engine.get("gpu_memory_utilization", DEFAULT_MEMORY_UTILIZATION)
    return int(_number("engine.gpu_memory_utilization", share, float) * total_bytes)


def _number(key: str, value: Any, kind: type[int] | type[float]) -> float:
    """Returns the value as a number; raises InvalidRequestError for any other, or a negative."""
    try:
        number = kind(value)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < float("inf"):
        what = "a whole number" if kind is int else "a number"
        raise InvalidRequestError(
            f"{key} must be {what}, at least 0, not {value!r}", reason="BAD_ARGUMENT", field=key
        )
    return number


def weights_bytes(config: ClusterConfig) -> int:
    """Returns the bytes of the model's weights; 0 for a missing model, which another check reports."""
    try:
        path = resolve_model(config.model)
    except Stream2LLMError:
        return 0
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
