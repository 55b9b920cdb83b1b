"""On which nodes of a Ray an actor may run. Plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import Field, field_validator

from stream2llm.serving.settings.frozen_model import FrozenModel

_VALUE = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_SELECTOR = re.compile(rf"!?(?:{_VALUE}|in\({_VALUE}(?:, ?{_VALUE})*\))")
_KEY = re.compile(rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_VALUE}")
# Fields of their own, or the memory of a store that we do not use.
_RESERVED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "", "object_store_memory": ""}


class Placement(FrozenModel):
    """The nodes that Ray may place an actor on. Without any of these: all nodes."""

    labels: Mapping[str, str] = Field(default_factory=dict)
    """Labels that the node must have (`ray start --labels KEY=VALUE`), each with a value, or in
    Ray's syntax `!VALUE`, `in(A, B)`, `!in(A, B)`."""
    resources: Mapping[str, float] = Field(default_factory=dict)
    """Amounts of custom resources (`ray start --resources '{"NAME": 1}'`) that Ray reserves on the
    node for each actor. CPUs and GPUs have fields of their own."""

    @field_validator("labels")
    @classmethod
    def _are_selectors(cls, labels: Mapping[str, str]) -> Mapping[str, str]:
        for key, selector in labels.items():
            if not _KEY.fullmatch(key):
                raise ValueError(
                    f"{key!r} is no key of a label: [PREFIX/]NAME, up to 63 characters"
                )
            if not _SELECTOR.fullmatch(selector):
                raise ValueError(
                    f"{key}: {selector!r} is none of VALUE, !VALUE, in(A, B), !in(A, B)"
                )
        return labels

    @field_validator("resources")
    @classmethod
    def _are_custom(cls, resources: Mapping[str, float]) -> Mapping[str, float]:
        for name, amount in resources.items():
            if name in _RESERVED:
                instead = f": set {_RESERVED[name]} instead" if _RESERVED[name] else ""
                raise ValueError(f"{name} is no custom resource{instead}")
            if not 0 < amount < float("inf") or (amount > 1 and amount % 1):
                raise ValueError(
                    f"{name}: {amount:g} is neither a fraction above 0 nor a whole number"
                )
        return resources
