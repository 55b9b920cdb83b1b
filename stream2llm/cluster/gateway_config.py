"""The section `gateway` of the configuration file."""

from __future__ import annotations

from pydantic import Field, model_validator

from stream2llm.cluster.front_config import FrontConfig
from stream2llm.serving.settings.gateway_spec import GatewayLimits
from stream2llm.serving.settings.security_options import NodeFile


class GatewayConfig(FrontConfig):
    """The gateways, which serve OpenAI's HTTP API in front of the routers."""

    replicas: int = Field(default=1, ge=1)
    """Number of gateways."""
    host: str = "127.0.0.1"
    """Address that gateways listen on. "auto": that of the node that Ray places the gateway on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """HTTP port of the first gateway, its metrics included; the others take the following ports.
    0: any free."""
    tool_parser: str | None = Field(default=None, min_length=1)
    """Name of the vLLM parser that reads calls of tools out of answers (`vllm serve
    --tool-call-parser`): the format that the model writes them in. Null: `tool_choice` cannot be
    "auto"."""
    reasoning_parser: str | None = Field(default=None, min_length=1)
    """Name of the vLLM parser that separates reasoning from content (`vllm serve
    --reasoning-parser`). Null: reasoning is part of the text."""
    web_folder: NodeFile | None = None
    """Directory with pages that gateways serve under `/web/`, without credentials, such as
    `examples/web`. Null: none."""
    limits: GatewayLimits = GatewayLimits()
    """What a gateway remembers for streamed context."""
    client_certificate: NodeFile | None = None
    """PEM file with the certificate that gateways show to routers where `security.tls.client_ca` is
    set, which has to have signed it."""
    client_key: NodeFile | None = None
    """PEM file with its private key, without a password."""

    @model_validator(mode="after")
    def _has_both_files(self) -> GatewayConfig:
        if (self.client_certificate is None) is not (self.client_key is None):
            raise ValueError("client_certificate and client_key are needed together")
        return self
