"""The control plane's input to a gateway. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from stream2llm.serving.settings.frozen_model import FrozenModel
from stream2llm.serving.settings.observability_options import ObservabilityOptions
from stream2llm.serving.settings.router_spec import RouterLimits
from stream2llm.serving.settings.security_options import SecurityOptions

_MI = 1024 * 1024


class GatewayLimits(FrozenModel):
    """What one gateway remembers for streamed context. Requests beyond it are refused with an error
    that names the limit."""

    max_websockets: int = Field(default=1024, ge=1)
    """Maximum WebSockets open at the same time; more are refused at the handshake
    (`websocket_connection_limit_reached`)."""
    max_stored_lanes: int = Field(default=1024, ge=1)
    """Maximum lanes that a tenant has without a WebSocket; beyond them the one that was unused for
    longest is forgotten."""
    max_conversation_chars_per_tenant: int = Field(default=32 * _MI, ge=1)
    """Maximum characters of the conversations that a tenant has without a WebSocket, and of those
    of one WebSocket (`state_too_large`)."""
    max_conversation_chars: int = Field(default=256 * _MI, ge=1)
    """Maximum characters of all conversations, and of requests of WebSockets that wait
    (`state_too_large`). A character takes 1 to 4 bytes of memory."""


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """Everything a gateway needs to start."""

    # Unique in the cluster, for instance "gateway-0".
    gateway_id: str
    host: str
    # 0: any free port.
    port: int
    # A directory with the model's tokenizer, for streamed context; without both it is not served.
    model_path: str = ""
    # As the configuration names it, where the node of the gateway finds the model itself.
    model: str = ""
    # Names of vLLM's parsers; both need the model's tokenizer. None: answers are not read for that.
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    # Served under /web/.
    web_folder: Path | None = None
    # Most bytes of a request's body, as of one message to a router.
    max_message_bytes: int = RouterLimits().max_message_bytes
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    # How long a drain waits for requests under way.
    drain_timeout_s: float = 30.0
    # What the gateway shows to routers where `security.tls.client_ca` is set.
    client_certificate: Path | None = None
    client_key: Path | None = None
    # Who may listen in, and who may connect.
    security: SecurityOptions = field(default_factory=SecurityOptions)
    # The form of its logs.
    observability: ObservabilityOptions = field(default_factory=ObservabilityOptions)
    # As all specs; routers do not ask for it.
    cluster_token: str = field(default="", repr=False)
