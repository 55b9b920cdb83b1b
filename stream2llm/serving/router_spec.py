"""The control plane's input to a router. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from stream2llm.api.handover import HandoverMode

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class FrozenModel(BaseModel):
    """A part of the configuration: immutable, and unknown keys are refused."""

    # A docstring under a field is its description in docs/reference/configuration.md.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RouterLimits(FrozenModel):
    """Limits of one router. Requests beyond them are refused with an error that names the limit."""

    max_open_sessions: int = Field(default=1024, ge=1)
    """Most sessions open at one router at the same time; more are refused (`TOO_MANY_SESSIONS`)."""
    max_session_tokens: int = Field(default=2_000_000, ge=1)
    """Most tokens a session may send over its whole life, replaced documents included."""
    max_documents_per_event: int = Field(default=4096, ge=1)
    """Most documents in one append or update."""
    max_session_documents: int = Field(default=65_536, ge=1)
    """Most documents with content that a session may send over its whole life."""
    max_message_bytes: int = Field(default=16 * MIB, ge=64 * KIB)
    """Most bytes of one gRPC message, between client and router and between router and workers."""
    input_idle_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds without an event from the client after which an unsealed session ends."""
    max_session_duration_s: float = Field(default=3600.0, gt=0)
    """Seconds from open after which a session ends, whatever its state."""
    credit_window_tokens: int = Field(default=65_536, ge=1)
    """Tokens received but not yet prefilled, above which the router stops reading from the
    client."""


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """Everything a router needs to start."""

    # Unique in the cluster, for instance "router-0".
    router_id: str
    host: str
    # 0: any free port.
    port: int
    metrics_port: int
    # The name that clients use.
    model_name: str
    # A directory with the tokenizer and config.json.
    model_path: str
    # Maximum tokens of a prompt and its answer together, from the engines' configuration.
    max_model_len: int
    # For sessions that do not choose a mode.
    handover: HandoverMode
    # How long a drain waits for open sessions.
    drain_timeout_s: float
    limits: RouterLimits = field(default_factory=RouterLimits)
