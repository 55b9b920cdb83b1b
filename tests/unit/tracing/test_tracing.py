"""W3C trace contexts, and spans on their way out of a process.

What is read from metadata and passed on; a real collector; nothing where traces are off.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from stream2llm.api.errors import UnavailableError
from stream2llm.api.trace_context import TraceContext, context_in, parse_traceparent
from stream2llm.cluster.config_file import parse_config
from stream2llm.serving.observability.span_export import Export
from stream2llm.serving.observability.spans import MAX_NOTES, Moment, Notes, SpanError, SpanRecord
from stream2llm.serving.observability.tracing import NO_TRACE, Tracing, outcome_of, recording
from stream2llm.serving.rpc.stream_writer import PeerGoneError
from stream2llm.serving.settings.observability_options import TracingOptions
from stream2llm.serving.system.clock import ManualClock
from stream2llm.serving.system.processes import Origin
from tools.traces.__main__ import lines
from tools.traces.collector import collecting

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(("flags", "is_sampled"), [("01", True), ("00", False), ("03", True)])
def test_a_context_is_read_and_written(flags: str, is_sampled: bool) -> None:
    context = parse_traceparent(f"00-{TRACE}-{SPAN}-{flags}", "vendor=1")
    assert context == TraceContext(TRACE, SPAN, is_sampled, "vendor=1")
    assert context_in(context.metadata()) == context


def test_a_later_version_may_have_more_fields() -> None:
    assert parse_traceparent(f"01-{TRACE}-{SPAN}-01-more") == TraceContext(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "garbage",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-x1",
    ],
)
def test_what_does_not_follow_the_specification_is_no_context(traceparent: str) -> None:
    assert context_in([("traceparent", traceparent)]) is None


def test_two_parents_are_none() -> None:
    parent = ("traceparent", f"00-{TRACE}-{SPAN}-01")
    assert context_in([parent]) is not None
    assert context_in([parent, parent]) is None
    assert context_in(None) is None


@pytest.mark.parametrize("state", ["x" * 513, "a=\n", "a=\x7f", "ä=1"])
def test_a_state_that_cannot_be_passed_on_is_dropped(state: str) -> None:
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-01", state) == TraceContext(TRACE, SPAN, True)


def test_parts_of_a_state_are_joined() -> None:
    metadata = [
        ("tracestate", "a=1"),
        ("traceparent", f"00-{TRACE}-{SPAN}-01"),
        ("tracestate", "b=2"),
        ("other", b"x"),
    ]
    assert context_in(metadata).state == "a=1,b=2"


PARENT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", is_sampled=True)


def tracing_to(endpoint: str | None, role: str = "prefill") -> tuple[Tracing, CollectorRegistry]:
    registry = CollectorRegistry()
    clock = ManualClock(monotonic_s=100.0, wall_s=1_000_000.0)
    options = TracingOptions(otlp_endpoint=endpoint)
    return Tracing(options, role, Origin("prefill-0", 3), clock, registry), registry  # type: ignore[arg-type]


async def test_a_span_arrives_with_those_within_it_and_the_wall_clock_s_times() -> None:
    with collecting() as (collector, endpoint):
        tracing, registry = tracing_to(endpoint)
        trace = tracing.begin("prefill", PARENT)
        inner = SpanRecord("queue", 100.5, 101.0, {"n": 1})
        moments = (Moment("seal", 100.75, {"m": 2}),)
        error = SpanError("KV_LOST", "gone")
        trace.end(SpanRecord("prefill", 100.0, 102.0, {"s": "a"}, moments, error, (inner,)))
        await tracing.flush()
        queue, prefill = collector.spans
        await tracing.close()
    assert (prefill.parent_id, queue.parent_id) == (PARENT.span_id, prefill.span_id)
    assert {span.trace_id for span in collector.spans} == {PARENT.trace_id}
    assert (prefill.begin_s, prefill.end_s) == (1_000_000.0, 1_000_002.0)
    assert (queue.begin_s, queue.end_s) == (1_000_000.5, 1_000_001.0)
    assert prefill.events == (("seal", 1_000_000.75),)
    assert prefill.attributes == {"s": "a", "error.type": "KV_LOST"}
    assert prefill.error == "gone"
    assert (prefill.service, prefill.instance) == ("stream2llm-prefill", "prefill-0")
    count = registry.get_sample_value
    assert count("stream2llm_trace_spans_total", {"result": "exported"}) == 2
    assert list(lines(collector.spans)) == [
        f"trace {PARENT.trace_id}: 2 spans",
        "  begin ms        ms  span",
        "       0.0    2000.0  prefill [prefill-0] s=a error.type=KV_LOST error='gone'",
        "     500.0     500.0    queue [prefill-0] n=1",
    ]


async def test_a_worker_begins_no_trace_of_its_own() -> None:
    with collecting() as (_, endpoint):
        for role, is_recorded in (("prefill", False), ("router", True)):
            tracing, _ = tracing_to(endpoint, role)
            assert tracing.begin("x", None).is_recorded is is_recorded
            await tracing.close()


class _Held(SpanExporter):
    """Takes nothing until it may."""

    def __init__(self) -> None:
        self.may_export = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.may_export.wait(10)
        return SpanExportResult.SUCCESS


def test_spans_beyond_the_limit_are_dropped_and_counted() -> None:
    counts: dict[str, int] = {}

    def count(result: str, num_spans: int) -> None:
        counts[result] = counts.get(result, 0) + num_spans

    held = _Held()
    export = Export(held, {}, count, sample_ratio=1.0, max_queued_spans=4)
    for _ in range(7):
        _, span = export.begin("session", None, 0.0)
        span.end(SpanRecord("session", 0.0, 1.0), 0.0)
    assert counts == {"dropped": 3}
    held.may_export.set()
    export.close()
    assert counts == {"dropped": 3, "exported": 4}


@pytest.mark.parametrize(
    ("raised", "outcome", "reason"),
    [
        (None, "ok", None),
        (PeerGoneError(), "cancelled", None),
        (UnavailableError("x", reason="KV_LOST"), "unavailable", "KV_LOST"),
        (ZeroDivisionError("x"), "internal", "ZeroDivisionError"),
    ],
)
async def test_a_span_ends_with_its_body_however_that_ends(
    raised: Exception | None, outcome: str, reason: str | None
) -> None:
    ended: list[tuple[str, str | None]] = []

    def record(outcome: str, error: SpanError | None) -> SpanRecord:
        ended.append((outcome, None if error is None else error.reason))
        return SpanRecord("x", 0.0, 0.0)

    with collecting() as (_, endpoint):
        tracing, _ = tracing_to(endpoint)
        for each in (tracing.begin("x", PARENT), NO_TRACE):  # what is not recorded is not made
            try:
                with recording(each, record):
                    if raised is not None:
                        raise raised
            except type(raised or ValueError()):
                pass
        await tracing.close()
    assert ended == [(outcome, reason)]
    assert raised is None or outcome_of(raised)[0] == outcome


def test_notes_are_limited_and_count_what_they_leave_out() -> None:
    notes = Notes[int]()
    for number in range(MAX_NOTES + 3):
        notes.add(number)
    assert notes.kept == list(range(MAX_NOTES))
    assert notes.num_left_out == 3


@pytest.mark.parametrize(
    "endpoint",
    ["collector:4317", "http://collector", "ftp://c:1", "http://c:1/v1/traces", "http://c:x"],
)
def test_a_wrong_endpoint_is_refused_by_name(endpoint: str) -> None:
    with pytest.raises(ValidationError, match=r"otlp_endpoint[\s\S]*must be http://host:port"):
        TracingOptions(otlp_endpoint=endpoint)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_wrong_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(ValidationError, match="sample_ratio"):
        TracingOptions(sample_ratio=ratio)


def test_traced_engines_must_keep_their_statistics() -> None:
    raw = {
        "observability": {"tracing": {"otlp_endpoint": "http://localhost:4317"}},
        "decode": {"engine": {"disable_log_stats": True}},
    }
    with pytest.raises(Exception, match=r"remove decode\.engine\.disable_log_stats"):
        parse_config(raw, source="the test")
    del raw["observability"]
    parse_config(raw, source="the test")


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    """vLLM imports it on its own account; so this imports what of a worker is ours."""
    code = (
        "import sys\n"
        "import router.server\n"
        "from prometheus_client import CollectorRegistry\n"
        "from stream2llm.api.trace_context import parse_traceparent\n"
        "from stream2llm.serving.system.clock import SystemClock\n"
        "from stream2llm.serving.settings.observability_options import TracingOptions\n"
        "from stream2llm.serving.system.processes import Origin\n"
        "from stream2llm.serving.observability.tracing import Tracing\n"
        "origin, registry = Origin('x'), CollectorRegistry()\n"
        "for role in ('router', 'prefill', 'decode'):\n"
        "    tracing = Tracing(TracingOptions(), role, origin, SystemClock(), registry)\n"
        f"    trace = tracing.begin('x', parse_traceparent({PARENT.traceparent!r}))\n"
        f"    assert trace.context.traceparent == {PARENT.traceparent!r}\n"
        "found = [name for name in sys.modules if name.startswith('opentelemetry')]\n"
        "sys.exit(f'imported: {found}' if found else 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
