"""A session's trace from a real router: its spans at a collector, its context at the workers."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stream2llm.api.trace_context import TraceContext, parse_traceparent
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.observability import logs
from stream2llm.serving.settings.observability_options import ObservabilityOptions, TracingOptions
from tests.polling import eventually
from tests.router_ring import Ring, a_ring, soon
from tools.traces.collector import Collector, Span, collecting

CLIENT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True, "vendor=1")
SESSION_CHILDREN = ["decode", "first_token", "seal", "tokenize", "tokenize", "tokenize", "transfer"]


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    with collecting() as pair:
        yield pair


@pytest.fixture
def traced(make_ring: Callable[..., Any], collector: tuple[Collector, str]) -> Callable[..., Any]:
    async def make(sample_ratio: float = 1.0, **options: Any) -> Ring:
        tracing = TracingOptions(otlp_endpoint=collector[1], sample_ratio=sample_ratio)
        ring: Ring = await make_ring(observability=ObservabilityOptions(tracing=tracing), **options)
        return ring

    return make


async def answered(ring: Ring, context: TraceContext | None, **opening: Any) -> Any:
    conversation = ring.converse(None if context is None else context.metadata())
    await conversation.open("Read this:", "Now answer.", session_id="mine", **opening)
    await conversation.append("a document")
    answer = await conversation.finish()
    await ring.nothing_is_open()
    return answer


async def sent(ring: Ring, collector: Collector) -> dict[str, list[Span]]:
    """The spans by name, once the router has sent what it has."""
    await ring.router._parts.tracing.flush()
    by_name: dict[str, list[Span]] = {}
    for span in collector.spans:
        by_name.setdefault(span.name, []).append(span)
    return by_name


async def test_a_session_s_spans_continue_the_client_s_trace(
    traced: Callable[..., Any], collector: tuple[Collector, str]
) -> None:
    ring = await traced(script=[50, 51, 52])
    ring.prefill.offers_blocks_of = 2
    answer = await answered(ring, CLIENT, handover=pb.HANDOVER_MODE_STREAMED)
    (session,) = (await sent(ring, collector[0]))["session"]
    spans = collector[0].spans
    assert {span.trace_id for span in spans} == {CLIENT.trace_id}
    assert session.parent_id == CLIENT.span_id
    inside = [span for span in spans if span is not session]
    assert {span.parent_id for span in inside} == {session.span_id}
    assert sorted(span.name for span in inside) == SESSION_CHILDREN
    assert (session.service, session.instance) == ("stream2llm-router", "router-0")
    usage = answer.finished.usage
    assert session.attributes == {
        "stream2llm.session_id": "mine",
        "stream2llm.input_mode": "append",
        "stream2llm.outcome": "ok",
        "gen_ai.request.model": "tiny",
        "stream2llm.finish_reason": "stop_token",
        "stream2llm.uncomputed_at_seal_tokens": usage.uncomputed_at_seal_tokens,
        "stream2llm.prefetched_tokens": usage.prefetched_tokens,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }
    # Each worker RPC continues the session's span, with the state of others on the way.
    told = [ring.record.metadata, *ring.decode.metadata]
    assert len(told) == 3, "prefill, prefetch, decode"
    for metadata in told:
        context = parse_traceparent(metadata["traceparent"], metadata["tracestate"])
        assert context == TraceContext(CLIENT.trace_id, session.span_id, True, CLIENT.state)


async def test_the_phases_follow_one_another(
    traced: Callable[..., Any], collector: tuple[Collector, str]
) -> None:
    ring = await traced(script=[50, 51, 52])
    await answered(ring, CLIENT)
    spans = await sent(ring, collector[0])
    (session,), (seal,), (first,) = spans["session"], spans["seal"], spans["first_token"]
    (transfer,), (decode,) = spans["transfer"], spans["decode"]
    assert session.begin_s <= seal.begin_s == first.begin_s
    assert seal.end_s <= first.end_s == transfer.begin_s
    assert transfer.end_s == decode.begin_s
    assert decode.end_s == session.end_s
    events = [span.attributes["stream2llm.event"] for span in spans["tokenize"]]
    assert events == ["open", "append", "seal"]
    document = spans["tokenize"][1].attributes
    assert document["stream2llm.num_tokens"] == len(ring.encode("a document"))
    assert document["stream2llm.num_documents"] == 1


async def test_the_client_decides_whether_its_session_is_recorded(
    traced: Callable[..., Any], collector: tuple[Collector, str]
) -> None:
    ring = await traced(sample_ratio=1.0)
    unrecorded = TraceContext(CLIENT.trace_id, CLIENT.span_id, is_sampled=False)
    await answered(ring, unrecorded)
    assert not await sent(ring, collector[0])
    told = parse_traceparent(ring.record.metadata["traceparent"])
    assert (told.trace_id, told.is_sampled) == (CLIENT.trace_id, False)


@pytest.mark.parametrize(("sample_ratio", "num_sessions"), [(0.0, 0), (1.0, 1)])
async def test_sessions_without_a_context_are_recorded_by_ratio(
    traced: Callable[..., Any],
    collector: tuple[Collector, str],
    sample_ratio: float,
    num_sessions: int,
) -> None:
    ring = await traced(sample_ratio=sample_ratio)
    await answered(ring, None)
    sessions = (await sent(ring, collector[0])).get("session", [])
    assert [session.parent_id for session in sessions] == [""] * num_sessions
    told = parse_traceparent(ring.record.metadata["traceparent"])
    assert told.is_sampled == bool(num_sessions)


async def test_a_session_that_fails_says_why(
    traced: Callable[..., Any], collector: tuple[Collector, str]
) -> None:
    ring = await traced()
    conversation = ring.converse(CLIENT.metadata())
    await conversation.open("x", model="no such model")
    await conversation.failure()
    await ring.nothing_is_open()
    (session,) = (await sent(ring, collector[0]))["session"]
    assert session.attributes["stream2llm.outcome"] == "not_found"
    assert session.attributes["error.type"] == "UNKNOWN_MODEL"
    assert "no such model" in session.error


async def test_a_client_that_leaves_is_no_error(
    traced: Callable[..., Any], collector: tuple[Collector, str]
) -> None:
    ring = await traced()
    conversation = ring.converse(CLIENT.metadata())
    await conversation.open("x")
    await conversation.next("accepted")
    conversation.call.cancel()
    await ring.nothing_is_open()
    (session,) = (await sent(ring, collector[0]))["session"]
    assert session.attributes["stream2llm.outcome"] == "cancelled"
    assert session.error == ""


async def test_a_collector_that_is_not_there_costs_spans_only(tiny_model: Path) -> None:
    tracing = TracingOptions(otlp_endpoint="http://127.0.0.1:1")
    async with a_ring(tiny_model, observability=ObservabilityOptions(tracing=tracing)) as ring:
        await answered(ring, CLIENT)
        value = ring.router.registry.get_sample_value
        name = "stream2llm_trace_spans_total"
        await soon(ring.router._parts.tracing.close())
        assert not value(name, {"result": "exported"})
        lost = [value(name, {"result": result}) or 0 for result in ("failed", "dropped")]
        assert sum(lost) == len(SESSION_CHILDREN) + 1


async def test_without_tracing_the_client_s_context_goes_on(ring: Ring) -> None:
    await answered(ring, CLIENT)
    assert ring.record.metadata["traceparent"] == CLIENT.traceparent
    assert ring.decode.metadata[0]["traceparent"] == CLIENT.traceparent
    assert ring.metric("stream2llm_trace_spans_total") is None


async def test_without_tracing_and_context_workers_are_told_nothing(ring: Ring) -> None:
    await answered(ring, None)
    assert not {"traceparent", "tracestate"} & {*ring.record.metadata, *ring.decode.metadata[0]}


@pytest.fixture
async def log_lines() -> AsyncIterator[Callable[[], list[dict[str, Any]]]]:
    """The router's log as JSON objects."""
    logger, stream = logging.getLogger("router"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_a_session_s_log_lines_name_it_and_its_span(
    traced: Callable[..., Any],
    collector: tuple[Collector, str],
    log_lines: Callable[[], list[dict[str, Any]]],
) -> None:
    ring = await traced()
    conversation = ring.converse(CLIENT.metadata())
    await conversation.open("x", session_id="mine")
    await conversation.next("accepted")
    conversation.call.cancel()
    await ring.nothing_is_open()

    async def about_sessions() -> list[dict[str, Any]]:
        return [line for line in log_lines() if line["message"].startswith("session_ended")]

    (line,) = await eventually(about_sessions, bool)
    (session,) = (await sent(ring, collector[0]))["session"]
    assert line["session_id"] == "mine"
    assert (line["trace_id"], line["span_id"]) == (CLIENT.trace_id, session.span_id)
