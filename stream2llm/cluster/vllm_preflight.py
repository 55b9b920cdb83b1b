"""Preflight of what vLLM gets: engine arguments, environment variables, ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.extras import install_command
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.layout import DETERMINISTIC_VARIABLE
from stream2llm.cluster.worker_config import WorkerConfig
from stream2llm.engine.arguments import (
    RESERVED_VARIABLES,
    check_arguments,
    check_variables,
    known_arguments,
    known_variables,
)
from stream2llm.engine.kv_digest import UNCOVERED_SPLITS

# Variables of this process that do not reach a worker, which sets its own.
_OURS_TO_SET = RESERVED_VARIABLES.keys()


def check_vllm() -> None:
    """The workers of this machine find vLLM."""
    if not known_arguments():
        text = f"vllm is not installed: {install_command('vllm')}"
        raise UnsupportedError(text, reason="DEPENDENCY_MISSING")


def check_environment() -> None:
    """Workers inherit this process's variables, and vLLM must be able to parse them."""
    inherited = {key: value for key, value in os.environ.items() if key not in _OURS_TO_SET}
    check_variables("environment", inherited)


def check_part(role: str, part: WorkerConfig) -> None:
    """Engine arguments exist and are not reserved; vLLM can parse its variables."""
    check_arguments(role, part.engine)
    check_ranks(role, part)
    check_variables(f"{role}.env", part.env)


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


def check_grammar_backends(config: ClusterConfig) -> None:
    """Prefill and decode constrain structured outputs by the same backend."""
    key = "structured_outputs_config"
    if not config.has_pairs:
        return
    if config.prefill.engine.get(key) != config.decode.engine.get(key):
        raise InvalidRequestError(
            f"prefill.engine.{key} and decode.engine.{key} differ; an answer begins in the grammar"
            " of the one and goes on in that of the other",
            reason="BAD_ARGUMENT",
            field=f"decode.engine.{key}",
        )


def check_digests(config: ClusterConfig) -> None:
    """Digests of KV cover the engines' KV; what is read of other KV would pass unchecked."""
    if not config.has_pairs or not config.handover.kv_digest:
        return
    for role, part in (("prefill", config.prefill), ("decode", config.decode)):
        for name in UNCOVERED_SPLITS:
            size = part.engine.get(name)
            if isinstance(size, int) and size > 1:
                field = f"{role}.engine.{name}"
                raise InvalidRequestError(
                    f"{field} is {size}, and digests of KV do not cover engines that split layers or"
                    " tokens; handover.kv_digest: false starts them without that check, so that"
                    " wrong KV would be noticed by nothing",
                    reason="BAD_ARGUMENT",
                    field=field,
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
