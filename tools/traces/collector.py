"""A collector of traces in this process: takes OTLP over gRPC, and keeps the spans."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """One span as the collector got it."""

    trace_id: str
    span_id: str
    # Empty for the root.
    parent_id: str
    name: str
    # `service.name` and `service.instance.id` of who sent it.
    service: str
    instance: str
    # Seconds since the Unix epoch.
    begin_s: float
    end_s: float
    attributes: Mapping[str, Any]
    # Name and instant.
    events: tuple[tuple[str, float], ...]
    # Empty without an error.
    error: str

    @property
    def duration_s(self) -> float:
        """Seconds from begin to end."""
        return self.end_s - self.begin_s


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps all spans that arrive; safe to read from another thread."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    @property
    def spans(self) -> tuple[Span, ...]:
        """All spans so far, in the order of their arrival."""
        with self._lock:
            return tuple(self._spans)

    def take(self) -> tuple[Span, ...]:
        """Returns all spans so far, and forgets them."""
        with self._lock:
            taken, self._spans = self._spans, []
        return tuple(taken)

    def Export(  # noqa: N802 - gRPC names its methods so
        self, request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> pb.ExportTraceServiceResponse:
        """Takes one batch."""
        spans = list(_spans(request))
        with self._lock:
            self._spans += spans
        return pb.ExportTraceServiceResponse()


@contextmanager
def collecting(address: str = "127.0.0.1:0") -> Iterator[tuple[Collector, str]]:
    """Listens; yields the collector and its endpoint, `http://host:port`."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4, thread_name_prefix="collector"))
    register: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server  # has no types
    register(collector, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield collector, f"http://{address.rpartition(':')[0]}:{port}"
    finally:
        server.stop(None).wait()


def _spans(request: pb.ExportTraceServiceRequest) -> Iterator[Span]:
    for of_resource in request.resource_spans:
        resource = _values(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield _span(span, resource)


def _span(span: trace_pb2.Span, resource: Mapping[str, Any]) -> Span:
    is_error = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        str(resource.get("service.name", "")),
        str(resource.get("service.instance.id", "")),
        span.start_time_unix_nano / _SECOND_NS,
        span.end_time_unix_nano / _SECOND_NS,
        _values(span.attributes),
        tuple((event.name, event.time_unix_nano / _SECOND_NS) for event in span.events),
        (span.status.message or "error") if is_error else "",
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each) for each in attributes}


def _value(attribute: KeyValue) -> Any:
    value: AnyValue = attribute.value
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
