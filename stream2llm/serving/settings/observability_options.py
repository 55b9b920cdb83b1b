"""Settings of traces and logs: a section of the configuration, the same for every component."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from stream2llm.serving.settings.frozen_model import FrozenModel

LogFormat = Literal["text", "json"]


class TracingOptions(FrozenModel):
    """OpenTelemetry traces of sessions, sent as OTLP over gRPC. Off without an endpoint."""

    otlp_endpoint: str | None = None
    """Collector that takes OTLP over gRPC: `http://host:port` (plain text) or `https://host:port`.
    Unset: no traces. Headers and certificates come from OpenTelemetry's environment variables
    OTEL_EXPORTER_OTLP_HEADERS and OTEL_EXPORTER_OTLP_CERTIFICATE."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    """Share of the sessions to trace whose client sends no trace context. For one that sends it,
    the client has decided."""

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_address(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not _is_endpoint(endpoint):
            raise ValueError("must be http://host:port or https://host:port, without a path")
        return endpoint

    @property
    def is_on(self) -> bool:
        """Whether sessions are traced at all."""
        return self.otlp_endpoint is not None


class ObservabilityOptions(FrozenModel):
    """Traces and logs of routers and workers."""

    tracing: TracingOptions = TracingOptions()
    """OpenTelemetry traces of sessions."""
    logs: LogFormat = "text"
    """Form of the logs on stderr. `text`: one line a record. `json`: one JSON object a record, with
    the session and its trace."""


def _is_endpoint(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:  # a port that is none
        return False
    is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    return parts.scheme in ("http", "https") and bool(parts.hostname and port) and is_bare
