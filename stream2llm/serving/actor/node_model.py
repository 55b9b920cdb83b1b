"""Where the model is on the node of a router, worker or gateway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from stream2llm.models.context_length import context_length
from stream2llm.models.store import resolve_model
from stream2llm.serving.settings.gateway_spec import GatewaySpec
from stream2llm.serving.settings.router_spec import RouterSpec
from stream2llm.serving.settings.worker_spec import WorkerSpec

Spec = TypeVar("Spec", RouterSpec, WorkerSpec, GatewaySpec)


def with_model_of_node(spec: Spec) -> Spec:
    """The spec with a directory of this node; raises ModelStoreError where the model is not here.

    The directory that the submitting machine found, if the node has it, too; else what the
    configuration's `model` is here.
    """
    if spec.model_path and Path(spec.model_path).is_dir():
        return spec
    path = resolve_model(spec.model or spec.model_path)
    found = replace(spec, model_path=str(path))
    if isinstance(found, RouterSpec) and not found.max_model_len:
        return replace(found, max_model_len=context_length(path))
    return found
