"""The control plane's input to a gateway. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stream2llm.serving.settings.observability_options import ObservabilityOptions
from stream2llm.serving.settings.router_spec import RouterLimits
from stream2llm.serving.settings.security_options import SecurityOptions


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
