"""The OpenTelemetry SDK behind `tracing`: contexts in, spans out to an exporter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from stream2llm.api.trace_context import TraceContext
from stream2llm.serving.observability.spans import MAX_NOTES, SpanRecord
from stream2llm.serving.settings.observability_options import TracingOptions

_log = logging.getLogger(__name__)

# (what became of them, number of spans)
Count = Callable[[str, int], None]

_SECOND_NS = 1_000_000_000
_BATCH_SPANS = 512
_BATCH_EVERY_MS = 1000
# Spans of one process that wait for the collector; more are dropped.
MAX_QUEUED_SPANS = 8192
# How long the collector may take for one batch, repetitions included.
_EXPORT_TIMEOUT_S = 10.0
# How long a process that ends waits for the collector to take its last spans.
_CLOSE_TIMEOUT_S = 2.0


def otlp_exporter(options: TracingOptions) -> SpanExporter:
    """The exporter for the configured collector."""
    return OTLPSpanExporter(endpoint=options.otlp_endpoint, timeout=_EXPORT_TIMEOUT_S)


class Export:
    """One component's tracer, with a queue and a thread that exports."""

    def __init__(
        self,
        exporter: SpanExporter,
        resource: Mapping[str, str],
        count: Count,
        *,
        sample_ratio: float,
        max_queued_spans: int = MAX_QUEUED_SPANS,
    ) -> None:
        # Not the process's global provider: that one is vLLM's, or the application's.
        self._processor = _Processor(exporter, count, max_queued_spans)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource.create(dict(resource)),
            span_limits=SpanLimits(max_events=4 * MAX_NOTES),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("stream2llm")

    def begin(
        self, name: str, parent: TraceContext | None, wall_s: float
    ) -> tuple[TraceContext | None, OpenSpan | None]:
        """Returns the new span's context, and the span if the trace is recorded.

        Without an SDK (OTEL_SDK_DISABLED) a new trace has no valid context, and the parent's
        stays.
        """
        span = self._tracer.start_span(
            name,
            context=Context() if parent is None else _as_parent(parent),
            kind=api.SpanKind.SERVER,
            start_time=_ns(wall_s),
        )
        context = _context_of(span) if span.get_span_context().is_valid else parent
        return context, OpenSpan(self._tracer, span) if span.is_recording() else None

    def flush(self) -> None:
        """Exports what is queued; blocks until that is done."""
        self._processor.force_flush()

    def close(self) -> None:
        """Exports what is queued for a limited time, then drops the rest."""
        self._processor.close(_CLOSE_TIMEOUT_S)


class OpenSpan:
    """A recorded span that has begun."""

    def __init__(self, tracer: api.Tracer, span: api.Span) -> None:
        self._tracer = tracer
        self._span = span

    def end(self, record: SpanRecord, offset_s: float) -> None:
        """Ends it with what the record says, and writes the spans within it."""
        inside = api.set_span_in_context(self._span, Context())
        for child in record.children:
            begun = self._tracer.start_span(
                child.name, context=inside, start_time=_ns(child.begin_s + offset_s)
            )
            OpenSpan(self._tracer, begun).end(child, offset_s)
        self._span.update_name(record.name)
        self._span.set_attributes(dict(record.attributes))
        for moment in record.moments:
            at_ns = _ns(moment.at_s + offset_s)
            self._span.add_event(moment.name, dict(moment.attributes), at_ns)
        if record.error is not None:
            self._span.set_attribute("error.type", record.error.reason)
            self._span.set_status(api.StatusCode.ERROR, record.error.message or record.error.reason)
        self._span.end(_ns(record.end_s + offset_s))


class _Processor(BatchSpanProcessor):
    """Limits what waits for the exporter, its present batch included, and counts the rest."""

    def __init__(self, exporter: SpanExporter, count: Count, max_queued_spans: int) -> None:
        super().__init__(
            _Counted(exporter, self._is_done),
            max_queue_size=max_queued_spans,
            schedule_delay_millis=_BATCH_EVERY_MS,
            max_export_batch_size=min(_BATCH_SPANS, max_queued_spans),
        )
        self._count = count
        self._max_queued_spans = max_queued_spans
        self._num_queued = 0
        # Spans end in the event loop, and are exported in the SDK's thread.
        self._lock = threading.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        """Queues a span, or drops it."""
        with self._lock:
            has_room = self._num_queued < self._max_queued_spans
            self._num_queued += has_room
        if has_room:
            super().on_end(span)
        else:
            self._count("dropped", 1)

    def close(self, timeout_s: float) -> None:
        """Exports for a limited time; the SDK's own `shutdown` takes no limit."""
        self._batch_processor.shutdown(int(timeout_s * 1000))
        with self._lock:
            num_left, self._num_queued = self._num_queued, 0
        if num_left:
            self._count("dropped", num_left)
            _log.warning("spans_dropped num_spans=%d (the collector took too long)", num_left)

    def _is_done(self, num_spans: int, is_exported: bool) -> None:
        with self._lock:
            # 0 after `close`, which has counted them.
            num_counted = min(num_spans, self._num_queued)
            self._num_queued -= num_counted
        self._count("exported" if is_exported else "failed", num_counted)


class _Counted(SpanExporter):
    """Reports the result of each batch."""

    def __init__(self, exporter: SpanExporter, is_done: Callable[[int, bool], None]) -> None:
        self._exporter = exporter
        self._is_done = is_done

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports one batch."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:  # the SDK logs what it raises
            self._is_done(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Ends the exporter."""
        self._exporter.shutdown()


def _as_parent(parent: TraceContext) -> Context:
    remote = api.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=api.TraceFlags(parent.is_sampled),
        trace_state=api.TraceState.from_header([parent.state]) if parent.state else None,
    )
    return api.set_span_in_context(api.NonRecordingSpan(remote), Context())


def _context_of(span: Any) -> TraceContext:
    context = span.get_span_context()
    return TraceContext(
        api.format_trace_id(context.trace_id),
        api.format_span_id(context.span_id),
        bool(context.trace_flags.sampled),
        context.trace_state.to_header(),
    )


def _ns(seconds: float) -> int:
    return round(seconds * _SECOND_NS)
