"""W3C trace contexts: what is read from metadata, and what is passed on."""

from __future__ import annotations

import pytest

from stream2llm.api.trace_context import TraceContext, context_in, parse_traceparent

pytestmark = pytest.mark.unit

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
    context = context_in(metadata)
    assert context is not None
    assert context.state == "a=1,b=2"
