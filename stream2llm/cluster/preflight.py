"""Looks for reasons why a start would fail, before anything is started.

An engine takes up to a minute to find out that it has too little memory; the operator
should know in a second, with the numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefill_worker.policy_loading import find_policy
from stream2llm.api.errors import (
    InvalidRequestError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
    UnsupportedError,
)
from stream2llm.api.extras import install_command
from stream2llm.cluster.config import ClusterConfig, WorkerConfig
from stream2llm.cluster.exposure import (
    check_authentication,
    check_encryption,
    check_keys_file,
    check_tls_files,
)
from stream2llm.cluster.layout import DETERMINISTIC_VARIABLE, served_max_model_len
from stream2llm.engine.arguments import (
    RESERVED_VARIABLES,
    check_arguments,
    check_variables,
    known_arguments,
    known_variables,
)
from stream2llm.engine.parser_names import check_parser
from stream2llm.models.errors import ModelStoreError
from stream2llm.models.store import resolve_model
from stream2llm.serving.actor.node_address import outward_address
from stream2llm.serving.settings.router_spec import GIB
from stream2llm.serving.system.clock import SystemClock
from stream2llm.serving.system.machine_memory import machine_memory
from stream2llm.serving.system.ports import is_port_free

# Python, torch and vLLM in the three processes of one CPU engine (measured: 1.7 GiB).
ENGINE_OVERHEAD_BYTES = int(1.7 * GIB)
DEFAULT_MEMORY_UTILIZATION = 0.92  # vLLM's; of all memory, also on CPUs
_SPACE = "VLLM_CPU_KVCACHE_SPACE"  # whole GiB
# Variables of this process that do not reach a worker, which sets its own.
_OURS_TO_SET = RESERVED_VARIABLES.keys()


@dataclass(frozen=True, slots=True)
class Check:
    """One possible problem; `run` raises a Stream2LLMError that describes it."""

    what: str
    run: Callable[[], object]


def check(
    config: ClusterConfig, *, on_this_machine: bool = True, runs_vllm: bool = True
) -> Path | None:
    """Makes all checks that take less than a second; returns the model's directory, if it is here.

    `on_this_machine`: the workers will be here, and not on other nodes of a Ray.
    `runs_vllm`: they host vLLM, which some tests' workers do not.
    """
    for each in checks(config, on_this_machine=on_this_machine, runs_vllm=runs_vllm):
        each.run()
    return find_model(config, on_this_machine=on_this_machine)


def checks(config: ClusterConfig, *, on_this_machine: bool, runs_vllm: bool) -> tuple[Check, ...]:
    """Returns the same checks one by one, to report more than the first problem."""
    found = [
        Check("model", lambda: find_model(config, on_this_machine=on_this_machine)),
        Check("policies", lambda: check_policies(config)),
        Check("parsers", lambda: check_parsers(config)),
        Check("encryption", lambda: check_encryption(config)),
        Check("authentication", lambda: check_authentication(config)),
    ]
    if runs_vllm:
        found.append(Check("environment", check_environment))
        found += [
            Check(f"{role} engine", partial(_check_part, role, part))
            for role, part in config.worker_sections
        ]
    found.append(Check("deterministic answers", lambda: check_deterministic(config)))
    if runs_vllm and on_this_machine:
        found.append(Check("vLLM", check_vllm))
    if on_this_machine:
        cores = frozenset(os.sched_getaffinity(0))
        found += [
            Check("API keys", lambda: check_keys_file(config)),
            Check("TLS files", lambda: check_tls_files(config, outward_address(), SystemClock())),
            Check("ports", lambda: check_ports(config)),
            Check("cores", lambda: check_cores(config, cores)),
            Check(
                "memory", lambda: check_memory(config, _weights_bytes(config), *machine_memory())
            ),
        ]
    return tuple(found)


def find_model(config: ClusterConfig, *, on_this_machine: bool) -> Path | None:
    """As `check_model`; None for a model that is not here and need not be, as the nodes have it."""
    try:
        return check_model(config)
    except ModelStoreError:
        if on_this_machine:
            raise
        served_max_model_len(config, None)  # the configuration's part of the check
        return None


def check_model(config: ClusterConfig) -> Path:
    """The model is where the configuration says, and has a context length."""
    path = resolve_model(config.model)
    served_max_model_len(config, path)
    return path


def check_policies(config: ClusterConfig) -> None:
    """Policies by import path can be imported and rank sessions."""
    prefill = config.prefill
    find_policy(prefill.policy, "prefill.policy")
    for path in prefill.extra_policies:
        find_policy(path, "prefill.extra_policies")


def check_parsers(config: ClusterConfig) -> None:
    """The installed vLLM, if there is one, has the parsers of the gateways."""
    if config.gateway is None:
        return
    if config.gateway.tool_parser is not None:
        check_parser("tool", config.gateway.tool_parser, "gateway.tool_parser")
    if config.gateway.reasoning_parser is not None:
        check_parser("reasoning", config.gateway.reasoning_parser, "gateway.reasoning_parser")


def check_vllm() -> None:
    """The workers of this machine find vLLM."""
    if not known_arguments():
        text = f"vllm is not installed: {install_command('vllm')}"
        raise UnsupportedError(text, reason="DEPENDENCY_MISSING")


def check_engine_arguments(config: ClusterConfig) -> None:
    """Engine arguments exist and are not reserved; vLLM can parse its variables."""
    for role, part in config.worker_sections:
        _check_part(role, part)
    check_grammar_backends(config)
    check_reasoning(config)


def check_grammar_backends(config: ClusterConfig) -> None:
    """Prefill and decode constrain structured outputs by the same backend."""
    key = "structured_outputs_config"
    if config.prefill.engine.get(key) != config.decode.engine.get(key):
        raise InvalidRequestError(
            f"prefill.engine.{key} and decode.engine.{key} differ; an answer begins in the grammar"
            " of the one and goes on in that of the other",
            reason="BAD_ARGUMENT",
            field=f"decode.engine.{key}",
        )


def check_reasoning(config: ClusterConfig) -> None:
    """Grammars begin behind the reasoning by a gateway's parser or by the engines', not by both."""
    if config.gateway is None or config.gateway.reasoning_parser is None:
        return
    for role, part in config.worker_sections:
        given = part.engine.get("structured_outputs_config")
        if isinstance(given, Mapping) and given.get("reasoning_parser"):
            field = f"{role}.engine.structured_outputs_config.reasoning_parser"
            raise InvalidRequestError(
                f"{field} and gateway.reasoning_parser exclude each other: the gateway's grammars"
                " have the reasoning in them, and engines would begin them behind it",
                reason="BAD_ARGUMENT",
                field=field,
            )


def check_environment() -> None:
    """Workers inherit this process's variables, and vLLM must be able to parse them."""
    inherited = {key: value for key, value in os.environ.items() if key not in _OURS_TO_SET}
    check_variables("environment", inherited)


def _check_part(role: str, part: WorkerConfig) -> None:
    check_arguments(role, part.engine)
    check_ranks(role, part)
    check_variables(f"{role}.env", part.env)


def check_deterministic(config: ClusterConfig) -> None:
    """vLLM has its batch-invariant mode where it is requested."""
    if not config.deterministic:
        return
    on_cpus = [role for role, part in config.worker_sections if not part.num_gpus]
    if on_cpus:
        raise UnsupportedError(
            f"deterministic: vLLM has no batch-invariant mode on CPUs ({', '.join(on_cpus)} workers"
            " have num_gpus: 0). There, dtype: float32 under prefill.engine and decode.engine keeps"
            " what runs beside an answer to rounding errors of the last digits, which change a"
            " token only where two are equally likely; bfloat16 does not",
            reason="NOT_DETERMINISTIC",
            field="deterministic",
        )
    if known_variables() and DETERMINISTIC_VARIABLE not in known_variables():
        raise UnsupportedError(
            f"deterministic: the installed vLLM has no {DETERMINISTIC_VARIABLE}",
            reason="NOT_DETERMINISTIC",
            field="deterministic",
        )


def check_ranks(role: str, part: WorkerConfig) -> None:
    """A worker's ranks are processes on its own node, each with a GPU that its actor holds.

    vLLM's Ray executor would ask Ray for GPUs beside those of the actor, and put ranks
    where NIXL's side channel of this worker is not.
    """
    key = f"{role}.engine.distributed_executor_backend"
    if part.engine.get("distributed_executor_backend") == "ray":
        raise InvalidRequestError(
            f"{key}: ray is not supported: a worker's actor holds all its GPUs ({role}.num_gpus)"
            " and runs a process for each; remove it",
            reason="RESERVED_ARGUMENT",
            field=key,
        )
    sizes = (part.engine.get(f"{kind}_parallel_size") or 1 for kind in ("tensor", "pipeline"))
    ranks = math.prod(size for size in sizes if isinstance(size, int))
    if 0 < part.num_gpus < ranks and ranks > 1:
        raise InvalidRequestError(
            f"{role}.num_gpus is {part.num_gpus:g}, and {role}.engine makes {ranks} ranks, which"
            f" need a GPU each on the worker's node; set {role}.num_gpus to {ranks}",
            reason="BAD_ARGUMENT",
            field=f"{role}.num_gpus",
        )


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
        " under prefill.env and decode.env to less, or start fewer replicas",
        reason="TOO_LITTLE_MEMORY",
    )


def model_bytes(model_path: Path) -> int:
    """The size of the weights on disk."""
    return sum(file.stat().st_size for file in model_path.glob("*.safetensors"))


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


def _weights_bytes(config: ClusterConfig) -> int:
    """Returns 0 for a missing model, which another check reports."""
    try:
        return model_bytes(resolve_model(config.model))
    except Stream2LLMError:
        return 0


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
