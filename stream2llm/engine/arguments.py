"""Checks a configuration's engine arguments and variables without starting vLLM.

The names are those of the installed vLLM: the fields of its `AsyncEngineArgs`, read
from its source (importing it takes ten seconds), and its own table of environment
variables with its own parsers. `engine_check`, which imports vLLM, checks the values of
arguments.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream2llm.api.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Engine arguments that Stream2LLM sets, each with the reason.
RESERVED: Mapping[str, str] = {
    "model": "the key `model` at the top level names the model",
    "scheduler_cls": "the engines run our schedulers",
    "kv_transfer_config": "`handover` and `prefill.preemption` describe how KV moves",
    "kv_events_config": "the engines' caches are reported to routers, without a port of their own",
    "additional_config": "it carries our settings into the engine",
    "logits_processors": "penalties on the first token need ours",
    "disable_hybrid_kv_cache_manager": "layers with a window keep their KV: updates may need it",
    "enable_log_requests": "the router logs sessions, the engine none of their text",
    "otlp_traces_endpoint": "`observability.tracing` says where traces go",
}
# Further ones for prefill and mixed workers.
RESERVED_PREFILL: Mapping[str, str] = {
    "async_scheduling": "a prefill step is planned when the one before has ended",
    "scheduler_reserve_full_isl": "the plan, not the engine, says whether a context fits",
}
RESERVED_VARIABLES: Mapping[str, str] = {
    "VLLM_NIXL_SIDE_CHANNEL_HOST": "each worker takes the address it listens on",
    "VLLM_NIXL_SIDE_CHANNEL_PORT": "each worker takes a free port",
}
PREFIX = "VLLM_"
# Similarity of a name to one of vLLM's above which a message suggests that one (unknown
# arguments), or the name is refused (variables: others may be a plugin's).
ARGUMENT_LIKENESS = 0.6
VARIABLE_LIKENESS = 0.85


def check_arguments(role: str, arguments: Mapping[str, Any]) -> None:
    """Raises InvalidRequestError for the first reserved or unknown argument."""
    reserved = {**RESERVED, **({} if role == "decode" else RESERVED_PREFILL)}
    known = known_arguments()
    for name in arguments:
        key = f"{role}.engine.{name}"
        if name in reserved:
            message = f"{key} is set by Stream2LLM itself ({reserved[name]}); remove it"
            raise InvalidRequestError(message, reason="RESERVED_ARGUMENT", field=key)
        if known and name not in known:
            message = (
                f"{key}: vLLM has no such engine argument{hint(name, known, ARGUMENT_LIKENESS)}"
            )
            raise InvalidRequestError(message, reason="UNKNOWN_ARGUMENT", field=key)


def check_variables(key: str, variables: Mapping[str, str]) -> None:
    """Raises InvalidRequestError for a misspelt, reserved or bad VLLM_ variable.

    `key` is the variables' configuration key ("prefill.env"). A name that resembles none
    of vLLM's may be a plugin's, and passes.
    """
    parsers = known_variables()
    for name, value in variables.items():
        if name.startswith(PREFIX):
            _check_variable(f"{key}.{name}", name, value, parsers)


def _check_variable(
    key: str, name: str, value: str, parsers: Mapping[str, Callable[[], Any]]
) -> None:
    if name in RESERVED_VARIABLES:
        message = f"{key} is set by Stream2LLM itself ({RESERVED_VARIABLES[name]}); remove it"
        raise InvalidRequestError(message, reason="RESERVED_ARGUMENT", field=key)
    if name not in parsers:
        meant = hint(name, frozenset(parsers), VARIABLE_LIKENESS)
        if meant:
            message = f"{key}: vLLM knows no such variable{meant}"
            raise InvalidRequestError(message, reason="UNKNOWN_ARGUMENT", field=key)
        return
    with _variable(name, value):
        try:
            parsers[name]()
        except Exception as error:  # the parsers raise various types
            message = f"{key}: vLLM cannot take {value!r}: {error}"
            raise InvalidRequestError(message, reason="BAD_ARGUMENT", field=key) from error


@cache
def known_arguments() -> frozenset[str]:
    """Returns the fields of the installed vLLM's AsyncEngineArgs; empty without a vLLM."""
    folder = vllm_folder()
    if folder is None:
        return frozenset()
    tree = ast.parse((folder / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    fields = [item for name in ("EngineArgs", "AsyncEngineArgs") for item in classes[name].body]
    return frozenset(
        item.target.id
        for item in fields
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and "ClassVar" not in ast.unparse(item.annotation)
    )


@cache
def known_variables() -> Mapping[str, Callable[[], Any]]:
    """Returns the installed vLLM's environment variables with their parsers; empty without it."""
    folder = vllm_folder()
    if folder is None:
        return {}
    # By file, because importing the module by name would import all of vLLM, and torch.
    spec = spec_from_file_location("stream2llm_vllm_envs", folder / "envs.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    table: Mapping[str, Callable[[], Any]] = module.environment_variables
    return table


def vllm_folder() -> Path | None:
    """Returns the directory of the installed vLLM; None without one. Imports nothing."""
    spec = find_spec("vllm")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def hint(name: str, known: Collection[str], likeness: float) -> str:
    """Returns "; did you mean ...?" for a known name that is alike by that much, 0 to 1; else nothing."""
    alike = get_close_matches(name.replace("-", "_"), known, n=1, cutoff=likeness)
    return f"; did you mean {alike[0]}?" if alike else ""


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Sets a variable temporarily, because the parsers read the environment."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
