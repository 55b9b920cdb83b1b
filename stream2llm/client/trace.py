"""The trace context that a client's RPC carries: the caller's own, or its active span's.

OpenTelemetry is not imported here, as the client does without it: an application that
has an active span has imported it.
"""

from __future__ import annotations

import sys

from stream2llm.api import arguments
from stream2llm.api.call_metadata import Metadata
from stream2llm.api.trace_context import TraceContext, parse_traceparent

_WANTED = 'a W3C trace context such as "00-<32 hex digits>-<16 hex digits>-01", or None'


def trace_metadata(traceparent: str | None) -> Metadata:
    """Returns the metadata for an RPC; none without a trace.

    Raises InvalidRequestError for a `traceparent` that does not follow the specification.
    """
    context = _active() if traceparent is None else _given(traceparent)
    return () if context is None else context.metadata()


def _given(traceparent: object) -> TraceContext:
    context = parse_traceparent(arguments.text(traceparent, "traceparent"))
    if context is None:
        raise arguments.refused("traceparent", traceparent, _WANTED)
    return context


def _active() -> TraceContext | None:
    """The context of the application's active OpenTelemetry span."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    span = api.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return TraceContext(
        format(span.trace_id, "032x"),
        format(span.span_id, "016x"),
        bool(span.trace_flags.sampled),
        span.trace_state.to_header(),
    )
