"""What a framework's call asks for beside its prompt: sampling, or a refusal by name. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from stream2llm.api.errors import UnsupportedError
from stream2llm.api.sampling import SamplingParameters

# A framework's call has one answer, which is text.
_NOT_HERE = {"n", "logprobs", "structured_output"}
_NAMES = {each.name for each in fields(SamplingParameters)} - _NOT_HERE
# The name that frameworks have for one of ours.
_OURS = {"stop": "stop_strings"}


def sampling_with(base: SamplingParameters, options: Mapping[str, Any]) -> SamplingParameters:
    """`base` with the options of a call, of which None stands for "not given".

    Raises UnsupportedError for an option that would have no effect, and InvalidRequestError
    for a value that cannot be.
    """
    given = {_OURS.get(name, name): value for name, value in options.items() if value is not None}
    for name in given:
        if name not in _NAMES:
            raise UnsupportedError(
                f"{name} is not supported here; a gateway's HTTP API may have it"
                " (docs/http-api.md)",
                field=name,
            )
    return replace(base, **given)
