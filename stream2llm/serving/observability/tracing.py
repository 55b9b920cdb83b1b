"""Traces of sessions: what a component calls to begin and end its span of one.

`span_export`, the only module that knows OpenTelemetry, is loaded only where traces are
on. A component calls `begin` once a session, passes `Trace.context` on to those it calls,
and gives `Trace.end` everything that the session's spans say.

A collector that is slow, broken or missing costs spans, never sessions: a thread of the
SDK sends them, a limited number waits for it, and the rest is dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter

from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.trace_context import TraceContext
from stream2llm.serving.observability.spans import SpanError, SpanRecord
from stream2llm.serving.rpc.stream_writer import PeerGoneError
from stream2llm.serving.settings.observability_options import TracingOptions
from stream2llm.serving.system.clock import Clock
from stream2llm.serving.system.processes import Origin

if TYPE_CHECKING:
    from stream2llm.serving.observability.span_export import Export, OpenSpan
    from stream2llm.serving.settings.launch import ReplicaRole


@dataclass(frozen=True, slots=True)
class _Recording:
    """A span that has begun, and the clock of its instants."""

    span: OpenSpan
    clock: Clock
    # Seconds to add to the monotonic clock for the wall clock.
    offset_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """One session's part of a trace at this component."""

    # For those that this component calls, and for logs; None without a trace.
    context: TraceContext | None = None
    _recording: _Recording | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether `end` writes anything, and so whether to note anything for it."""
        return self._recording is not None

    @property
    def recorded_context(self) -> TraceContext | None:
        """For an engine, whose own spans join the trace; None where none is recorded."""
        return self.context if self.is_recorded else None

    def now_s(self) -> float:
        """The present instant of a span; 0 where none is recorded."""
        return 0.0 if self._recording is None else self._recording.clock.monotonic_s()

    def end(self, record: SpanRecord) -> None:
        """Writes the span that `begin` began, and those within it; only if recorded."""
        if self._recording is not None:
            self._recording.span.end(record, self._recording.offset_s)


NO_TRACE = Trace()
# Makes a session's span, given its outcome and its error.
MakeRecord = Callable[[str, SpanError | None], SpanRecord]


@contextmanager
def recording(trace: Trace, make_record: MakeRecord) -> Iterator[None]:
    """Ends the trace's span with its body, however that ends."""
    try:
        yield
    except BaseException as error:
        if trace.is_recorded:
            trace.end(make_record(*outcome_of(error)))
        raise
    if trace.is_recorded:
        trace.end(make_record("ok", None))


def outcome_of(error: BaseException) -> tuple[str, SpanError | None]:
    """Returns a session's outcome, as in the metrics, and its error; a peer that left is none."""
    if isinstance(error, asyncio.CancelledError | PeerGoneError):
        return "cancelled", None
    if isinstance(error, Stream2LLMError):
        return error.status_name.lower(), SpanError(error.reason, error.message)
    return "internal", SpanError(type(error).__name__, str(error))


class SpanCounter:
    """Counts spans by what became of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Counter(
            "stream2llm_trace_spans",
            "Spans of traced sessions, by result: exported; failed (the collector did not take"
            " them); dropped (too many waited for it).",
            ("result",),
            registry=registry,
        )
        for result in ("exported", "failed", "dropped"):  # 0 rather than absent
            self._counter.labels(result)

    def count(self, result: str, num_spans: int) -> None:
        """Adds spans with one of the results."""
        self._counter.labels(result).inc(num_spans)


class Tracing:
    """Traces of one component; without an endpoint it only passes contexts on."""

    def __init__(
        self,
        options: TracingOptions,
        role: ReplicaRole,
        origin: Origin,
        clock: Clock,
        registry: CollectorRegistry,
    ) -> None:
        """The metric of spans is in the registry only where traces are on."""
        self._clock = clock
        self._export: Export | None = None
        if options.is_on:
            # Only a router begins traces: a worker's sessions are parts of its router's.
            ratio = options.sample_ratio if role == "router" else 0.0
            options = options.model_copy(update={"sample_ratio": ratio})
            self._export = _otlp_export(
                options, _resource(role, origin), SpanCounter(registry).count
            )

    def begin(self, name: str, parent: TraceContext | None) -> Trace:
        """Begins this component's span of a session, now."""
        if self._export is None:
            return NO_TRACE if parent is None else Trace(parent)
        wall_s = self._clock.wall_s()
        context, span = self._export.begin(name, parent, wall_s)
        if span is None:
            return Trace(context)
        return Trace(context, _Recording(span, self._clock, wall_s - self._clock.monotonic_s()))

    async def flush(self) -> None:
        """Sends what is waiting, however long that takes; for tests."""
        if self._export is not None:
            await asyncio.to_thread(self._export.flush)

    async def close(self) -> None:
        """Sends what is waiting, for a limited time."""
        if self._export is not None:
            await asyncio.to_thread(self._export.close)


def service_name(role: ReplicaRole) -> str:
    """OpenTelemetry's `service.name` of a component, also for what its engine sends."""
    return f"stream2llm-{role}"


def _resource(role: ReplicaRole, origin: Origin) -> dict[str, str]:
    return {
        "service.name": service_name(role),
        "service.instance.id": origin.component,
        "stream2llm.incarnation": str(origin.incarnation),
    }


def _otlp_export(
    options: TracingOptions, resource: Mapping[str, str], count: Callable[[str, int], None]
) -> Export:
    from stream2llm.serving.observability.span_export import Export, otlp_exporter

    return Export(otlp_exporter(options), resource, count, sample_ratio=options.sample_ratio)
