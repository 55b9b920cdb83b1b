"""Looks for what would make a start fail, before anything is started.

An engine takes up to a minute to find out that it has too little memory; the
person at the terminal should know in a second, with the numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from stream2llm.config import ClusterConfig, WorkerConfig
from stream2llm.errors import InvalidRequestError, OverloadedError, UnavailableError
from stream2llm.model_store import resolve_model
from stream2llm.ports import is_port_free

GIB = 1024**3
# Python, torch and vLLM in the three processes of one CPU engine (measured: 1.7 GiB).
ENGINE_OVERHEAD_BYTES = int(1.7 * GIB)
DEFAULT_MEMORY_UTILIZATION = 0.92  # vLLM's; of all memory, also on CPUs


def check(config: ClusterConfig) -> Path:
    """All checks for a cluster on this machine; returns the model's directory."""
    model_path = check_model(config)
    check_engine_arguments(config)
    check_ports(config)
    check_cores(config, frozenset(os.sched_getaffinity(0)))
    check_memory(config, model_bytes(model_path), *machine_memory())
    return model_path


def check_model(config: ClusterConfig) -> Path:
    """The model is where the configuration says."""
    return resolve_model(config.model)


def check_engine_arguments(config: ClusterConfig) -> None:
    """No engine argument that is ours to set; vLLM checks the others."""
    ours = {"model", "kv_transfer_config", "scheduler_cls"}
    for role, part in _roles(config):
        for key in ours & part.engine.keys():
            raise InvalidRequestError(
                f"{role}.engine.{key} is set by Stream2LLM itself; remove it",
                field=f"{role}.engine.{key}",
            )


def check_ports(config: ClusterConfig) -> None:
    """Every fixed port is free, and none is meant for two."""
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


def check_cores(config: ClusterConfig, cores: frozenset[int]) -> None:
    """Explicit core lists name cores that we may use, for each replica."""
    for role, part in _roles(config):
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


def check_memory(
    config: ClusterConfig, weights_bytes: int, available_bytes: int, total_bytes: int
) -> None:
    """The CPU engines fit into the memory that is available now."""
    parts = [
        (f"{part.replicas} {role}", part.replicas * _engine_bytes(part, weights_bytes, total_bytes))
        for role, part in _roles(config)
        if not part.num_gpus
    ]
    needed = sum(size for _, size in parts)
    if needed <= available_bytes:
        return
    listing = ", ".join(f"{what}: {size / GIB:.1f} GiB" for what, size in parts)
    raise OverloadedError(
        f"too little memory: the engines need about {needed / GIB:.1f} GiB ({listing}),"
        f" {available_bytes / GIB:.1f} GiB are available; set VLLM_CPU_KVCACHE_SPACE (GiB)"
        " under prefill.env and decode.env to less, or start fewer replicas",
        reason="TOO_LITTLE_MEMORY",
    )


def model_bytes(model_path: Path) -> int:
    """The size of the weights on disk."""
    return sum(file.stat().st_size for file in model_path.glob("*.safetensors"))


def machine_memory() -> tuple[int, int]:
    """(available, total) bytes, of the machine or of the control group if that is less."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available, total = (int(fields[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    limit, used = _control_group_memory()
    if limit is not None:
        available, total = min(available, limit - used), min(total, limit)
    return available, total


def _control_group_memory() -> tuple[int | None, int]:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None, 0
    return (None if limit == "max" else int(limit)), used


def _engine_bytes(part: WorkerConfig, weights_bytes: int, total_bytes: int) -> int:
    """One CPU engine, with its KV cache."""
    return weights_bytes + ENGINE_OVERHEAD_BYTES + _kv_cache_bytes(part, total_bytes)


def _kv_cache_bytes(part: WorkerConfig, total_bytes: int) -> int:
    if part.engine.get("num_gpu_blocks_override"):
        return 0  # used for small caches
    if space := part.env.get("VLLM_CPU_KVCACHE_SPACE", os.environ.get("VLLM_CPU_KVCACHE_SPACE")):
        return int(space) * GIB
    if given := part.engine.get("kv_cache_memory_bytes"):
        return int(given)
    share = float(part.engine.get("gpu_memory_utilization", DEFAULT_MEMORY_UTILIZATION))
    return int(share * total_bytes)


def _roles(config: ClusterConfig) -> tuple[tuple[str, WorkerConfig], ...]:
    return (("prefill", config.prefill), ("decode", config.decode))


def _fixed_ports(config: ClusterConfig) -> Iterator[tuple[str, str, int]]:
    router = config.router
    ranges = [
        ("router.port", router.host, router.port, router.replicas),
        ("router.metrics_port", router.host, router.metrics_port, router.replicas),
        ("controller.http_port", config.controller.host, config.controller.http_port, 1),
    ]
    for role, part in _roles(config):
        ranges.append((f"{role}.metrics_port", part.host, part.metrics_port, part.replicas))
    for key, host, first, count in ranges:
        for port in range(first, first + count) if first else ():
            yield key, host, port


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
