"""The control plane's input to a router. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from stream2llm.api.handover import HandoverMode
from stream2llm.serving.settings.frozen_model import FrozenModel
from stream2llm.serving.settings.observability_options import ObservabilityOptions
from stream2llm.serving.settings.security_options import SecurityOptions

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


AdmissionMode = Literal["always", "warn", "refuse"]
DEFAULT_ADMISSION: AdmissionMode = "always"
DEFAULT_DRAIN_TIMEOUT_S = 30.0


class RouterLimits(FrozenModel):
    """Limits of one router. Requests beyond them are refused with an error that names the limit."""

    max_open_sessions: int = Field(default=10_000, ge=1)
    """Maximum sessions open at one router at the same time; more are refused (`TOO_MANY_SESSIONS`)."""
    max_session_tokens: int = Field(default=2_000_000, ge=1)
    """Maximum tokens a session may send over its whole life, replaced documents included."""
    max_documents_per_event: int = Field(default=4096, ge=1)
    """Maximum documents in one append or update."""
    max_session_documents: int = Field(default=65_536, ge=1)
    """Maximum documents with content that a session may send over its whole life."""
    max_message_bytes: int = Field(default=16 * MIB, ge=64 * KIB)
    """Maximum bytes of one gRPC message, between client and router and between router and workers."""
    input_idle_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds without an event from the client after which an unsealed session ends."""
    open_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds until the first event of a stream, after which it ends (`NOT_OPENED`)."""
    silent_after_s: float = Field(default=10.0, ge=0)
    """Seconds without a new token after which an unsealed session counts as silent: a router that
    is full gives its place to another tenant that has less than its share of the places. A stream
    that has sent no token at all counts as silent from its beginning."""
    max_session_duration_s: float = Field(default=3600.0, gt=0)
    """Seconds from open after which a session ends, whatever its state."""
    credit_window_tokens: int = Field(default=65_536, ge=1)
    """Tokens received but not yet prefilled, above which the router stops reading from the
    client."""


class RecoveryOptions(FrozenModel):
    """What a router does for a session that loses a worker: it places the session at another one."""

    max_restarts: int = Field(default=3, ge=0)
    """Maximum restarts of one session; the next loss fails it. 0: every loss fails it."""
    max_engine_deaths: int = Field(default=2, ge=1)
    """Engines that may die while they hold one session. With this many it is taken for the cause of
    their deaths, and fails."""
    max_wait_s: float = Field(default=120.0, ge=0)
    """Seconds that a session waits, at its beginning and at each loss, until a worker can be used."""


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
    # A directory with the tokenizer and config.json; empty: `model` is looked up on the node.
    model_path: str
    # Maximum tokens of a prompt and its answer together, from the engines' configuration; 0: what
    # the model of the node says.
    max_model_len: int
    # For sessions that do not choose a mode.
    handover: HandoverMode
    # How long a drain waits for open sessions.
    drain_timeout_s: float
    # The configuration's name, directory or id of the model.
    model: str = ""
    limits: RouterLimits = field(default_factory=RouterLimits)
    # Which of the routers it is: each has a part of every tenant's quotas.
    router_index: int = 0
    num_routers: int = 1
    # What happens to a session whose deadline will not hold.
    admission: AdmissionMode = DEFAULT_ADMISSION
    # Deadlines of sessions that ask for none.
    ttft_slo_ms: int | None = None
    # What happens to sessions that lose a worker.
    recovery: RecoveryOptions = field(default_factory=RecoveryOptions)
    # Who may listen in, and who may connect.
    security: SecurityOptions = field(default_factory=SecurityOptions)
    # Its traces and the form of its logs.
    observability: ObservabilityOptions = field(default_factory=ObservabilityOptions)
    # Sent to workers with every RPC, which refuse others. Never logged.
    cluster_token: str = field(default="", repr=False)
