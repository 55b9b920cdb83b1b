"""Streamed hand-over through the whole cluster: KV that is at decode in time."""

from __future__ import annotations

import asyncio

import pytest

from stream2llm.client import AsyncClient
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Stream, until_prefilled

pytestmark = [pytest.mark.integration, pytest.mark.cluster("sensitive-1x1")]
BLOCK = 32


async def test_most_of_the_context_is_at_decode_at_the_seal(
    client: AsyncClient, reference: ReferenceEngine
) -> None:
    """Each block once: what another session or another test left there is not this stream's."""
    stream = Stream("ahead", (("append", ("a",)), ("append", ("b",))), {"a": 900, "b": 700})
    async with client.session(
        prefix=stream.prefix, suffix=stream.suffix, sampling=GREEDY, handover="streamed"
    ) as session:
        for index, name in enumerate("ab"):
            await session.append(stream.document(name))
            await until_prefilled(session, index + 2)
            await asyncio.sleep(0.5)
        answer = await session.answer()
    assert list(answer.token_ids) == reference.answer(stream.prompt, 8)
    num_stable = len(stream.prompt) - len(stream.suffix) - 1
    assert answer.finished.usage.prefetched_tokens >= num_stable - num_stable % BLOCK
