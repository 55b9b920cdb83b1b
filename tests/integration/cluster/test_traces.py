"""One trace of one session through a real cluster, vLLM's own spans in it."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence

import pytest

from stream2llm.api.trace_context import TraceContext
from stream2llm.client import AsyncClient
from tests.cluster_pool import ClusterPool
from tests.polling import eventually
from tests.streams import GREEDY, Stream, until_prefilled
from tools.traces.__main__ import lines
from tools.traces.collector import Span

pytestmark = [pytest.mark.slow, pytest.mark.cluster("sensitive-1x1")]

# Each span with those above it; those that may occur several times are counted apart.
ONCE = {
    "router/session",
    "router/session/seal",
    "router/session/first_token",
    "router/session/transfer",
    "router/session/decode",
    "router/session prefill/prefill",
    "router/session prefill/prefill/llm_request",
    "router/session decode/prefetch",
    "router/session decode/decode",
    "router/session decode/decode/transfer",
    "router/session decode/decode/llm_request",
}
SEVERAL = {
    "router/session/tokenize",
    "router/session prefill/prefill/queue",
    "router/session prefill/prefill/prefill_steps",
    "router/session decode/prefetch/fetch",
}


def paths(spans: Sequence[Span]) -> list[str]:
    """Each span's path from the root: its service, where that changes, and its name."""
    by_id = {span.span_id: span for span in spans}

    def path(span: Span) -> str:
        role = span.service.removeprefix("stream2llm-")
        parent = by_id.get(span.parent_id)
        if parent is None:
            return f"{role}/{span.name}"
        between = "/" if parent.service == span.service else f" {role}/"
        return f"{path(parent)}{between}{span.name}"

    return [path(span) for span in spans]


async def test_a_session_is_one_trace_from_the_client_to_decode(
    client: AsyncClient, cluster_pool: ClusterPool
) -> None:
    context = TraceContext(secrets.token_hex(16), secrets.token_hex(8), is_sampled=True)
    stream = Stream("traced", (("append", ("a",)), ("append", ("b",))), {"a": 500, "b": 300})
    async with client.session(
        prefix=stream.prefix,
        suffix=stream.suffix,
        sampling=GREEDY,
        handover="streamed",
        session_id="traced",
        traceparent=context.traceparent,
    ) as session:
        for index, name in enumerate("ab"):
            await session.append(stream.document(name))
            await until_prefilled(session, index + 2)
        answer = await session.answer()

    async def traced() -> list[Span]:
        spans = cluster_pool.collector.spans
        return [span for span in spans if span.trace_id == context.trace_id]

    def is_whole(spans: list[Span]) -> bool:
        return set(paths(spans)) >= ONCE | SEVERAL

    spans = await eventually(traced, is_whole)
    count = Counter(paths(spans))
    assert count.keys() == ONCE | SEVERAL
    assert {path for path in ONCE if count[path] > 1} == set()
    of = dict(zip(paths(spans), spans, strict=True))
    session_span = of["router/session"]
    assert session_span.parent_id == context.span_id
    assert not [span for span in spans if span.error]
    num_prompt_tokens = len(stream.prompt)
    assert session_span.attributes["gen_ai.usage.input_tokens"] == num_prompt_tokens
    steps = [span for span in spans if span.name == "prefill_steps"]
    computed = sum(span.attributes["stream2llm.computed_tokens"] for span in steps)
    assert computed == answer.finished.usage.computed_tokens
    transfer = of["router/session decode/decode/transfer"]
    local = of["router/session decode/decode"].attributes["stream2llm.local_tokens"]
    assert local == answer.finished.usage.prefetched_tokens
    assert transfer.attributes["stream2llm.num_tokens"] == num_prompt_tokens - local
    # Clocks of one machine: nothing within a session is outside it.
    for span in spans:
        assert session_span.begin_s - 0.01 <= span.begin_s <= span.end_s, span
    print("\n".join(lines(spans)))  # pytest -s shows it
    # Sessions without a context are not recorded, and neither are vLLM's requests of them.
    others = {span.name for span in cluster_pool.collector.spans if span not in spans}
    assert others == set()
