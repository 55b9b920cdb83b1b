"""Looks for reasons why a start would fail, before anything is started.

An engine takes up to a minute to find out that it has too little memory; the operator
should know in a second, with the numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prefill_worker.policy_loading import find_policy
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.exposure import (
    check_authentication,
    check_encryption,
    check_keys_file,
    check_tls_files,
)
from stream2llm.cluster.layout import served_max_model_len
from stream2llm.cluster.machine_preflight import (
    check_cores,
    check_memory,
    check_ports,
    weights_bytes,
)
from stream2llm.cluster.vllm_preflight import (
    check_deterministic,
    check_digests,
    check_environment,
    check_grammar_backends,
    check_part,
    check_reasoning,
    check_vllm,
)
from stream2llm.engine.parser_names import check_parser
from stream2llm.models.errors import ModelStoreError
from stream2llm.models.names import require_same_on_all_nodes
from stream2llm.models.store import resolve_model
from stream2llm.serving.actor.node_address import outward_address
from stream2llm.serving.system.clock import SystemClock
from stream2llm.serving.system.machine_memory import machine_memory


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
        Check("grammar backends", lambda: check_grammar_backends(config)),
        Check("reasoning", lambda: check_reasoning(config)),
        Check("KV digests", lambda: check_digests(config)),
        Check("encryption", lambda: check_encryption(config)),
        Check("authentication", lambda: check_authentication(config)),
    ]
    if runs_vllm:
        found.append(Check("environment", check_environment))
        found += [
            Check(f"{role} engine", partial(check_part, role, part))
            for role, part in config.worker_sections
        ]
    found += [
        Check("KV digests", lambda: check_digests(config)),
        Check("deterministic answers", lambda: check_deterministic(config)),
    ]
    if runs_vllm and on_this_machine:
        found.append(Check("vLLM", check_vllm))
    if on_this_machine:
        cores = frozenset(os.sched_getaffinity(0))
        found += [
            Check("API keys", lambda: check_keys_file(config)),
            Check("TLS files", lambda: check_tls_files(config, outward_address(), SystemClock())),
            Check("ports", lambda: check_ports(config)),
            Check("cores", lambda: check_cores(config, cores)),
            Check("memory", lambda: check_memory(config, weights_bytes(config), *machine_memory())),
        ]
    return tuple(found)


def find_model(config: ClusterConfig, *, on_this_machine: bool) -> Path | None:
    """As `check_model`; None for a model that is not here and need not be, as the nodes have it."""
    if not on_this_machine:
        require_same_on_all_nodes(config.model)
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
    role, part = config.prefilling
    find_policy(part.policy, f"{role}.policy")
    for path in part.extra_policies:
        find_policy(path, f"{role}.extra_policies")


def check_parsers(config: ClusterConfig) -> None:
    """The installed vLLM, if there is one, has the parsers of the gateways."""
    if config.gateway is None:
        return
    if config.gateway.tool_parser is not None:
        check_parser("tool", config.gateway.tool_parser, "gateway.tool_parser")
    if config.gateway.reasoning_parser is not None:
        check_parser("reasoning", config.gateway.reasoning_parser, "gateway.reasoning_parser")
