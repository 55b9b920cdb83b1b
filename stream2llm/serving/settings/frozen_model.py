"""The base of every section of the configuration file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """A part of the configuration: immutable, and unknown keys are refused."""

    # A docstring under a field is its description in docs/reference/configuration.md.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
