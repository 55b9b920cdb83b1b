"""The trace context that the client sends: the caller's, or the application's active span's."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.trace_context import TraceContext, context_in
from stream2llm.client import AsyncClient, Client
from tests.fake_router import FakeRouter

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def sent(router: FakeRouter) -> TraceContext | None:
    (metadata,) = router.metadata
    return context_in(metadata)


async def test_a_session_carries_the_given_context(client: AsyncClient, router: FakeRouter) -> None:
    async with client.session(prefix="P", traceparent=GIVEN) as session:
        await session.answer()
    assert sent(router).traceparent == GIVEN


async def test_a_prompt_carries_the_given_context(client: AsyncClient, router: FakeRouter) -> None:
    await client.generate("prompt", traceparent=GIVEN).answer()
    assert sent(router).traceparent == GIVEN


async def test_without_a_span_nothing_is_sent(client: AsyncClient, router: FakeRouter) -> None:
    async with client.session(prefix="P") as session:
        await session.answer()
    assert sent(router) is None


async def test_a_session_belongs_to_the_active_span_where_it_was_made(
    client: AsyncClient, router: FakeRouter
) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")
    with tracer.start_as_current_span("request") as span:
        session = client.session(prefix="P")
    async with session:
        await session.answer()
    context = sent(router)
    own = span.get_span_context()
    assert (int(context.trace_id, 16), int(context.span_id, 16)) == (own.trace_id, own.span_id)
    assert context.is_sampled


def test_the_synchronous_client_too(threaded_router) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")
    with Client(threaded_router.fake.address) as client:
        with tracer.start_as_current_span("request") as span, client.session(prefix="P") as session:
            session.answer()
        context = sent(threaded_router.fake)
    assert int(context.trace_id, 16) == span.get_span_context().trace_id


@pytest.mark.parametrize("traceparent", ["", "garbage", GIVEN.upper(), 1])
async def test_a_context_that_is_none_is_refused_by_name(
    client: AsyncClient, traceparent: str
) -> None:
    with pytest.raises(InvalidRequestError, match=r"traceparent is .*it must be") as refused:
        client.session(prefix="P", traceparent=traceparent)
    assert refused.value.field == "traceparent"
    with pytest.raises(InvalidRequestError, match="traceparent"):
        client.generate("prompt", traceparent=traceparent)


def test_the_client_does_not_import_opentelemetry() -> None:
    code = "import sys, stream2llm.client; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
