"""Prefill runs, and KV goes to decode, while documents arrive.

At the seal only the uncomputed tail is left, and with the streamed hand-over no block.
"""

from __future__ import annotations

import asyncio

import pytest

from stream2llm.client import AsyncClient, Document, TokenDelta
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Stream, collect, until_prefilled

pytestmark = pytest.mark.cluster("sensitive-1x1")

APPENDS = Stream(
    "overlap", tuple(("append", (f"d{i}",)) for i in range(4)), {f"d{i}": 300 for i in range(4)}
)


async def test_documents_are_computed_before_the_seal(client: AsyncClient) -> None:
    async with client.session(
        prefix=APPENDS.prefix, suffix=APPENDS.suffix, sampling=GREEDY
    ) as session:
        for i in range(4):
            await session.append(APPENDS.document(f"d{i}"))
            progress = await until_prefilled(session, sequence=i + 2)
            # All but the token that is held back so that nothing is sampled.
            assert progress.received_tokens == 7 + 300 * (i + 1)
            assert progress.prefilled_tokens == progress.received_tokens - 1
        outcome = await collect(session.seal())
    usage = outcome.finished.usage
    assert usage.uncomputed_at_seal_tokens == 1 + len(APPENDS.suffix)
    assert usage.computed_tokens + usage.reused_tokens == len(APPENDS.prompt)


async def test_an_update_throws_away_only_what_follows_the_common_prefix(
    client: AsyncClient,
) -> None:
    stream = Stream("lcp", (), {"a": 200, "b": 100, "c": 100})
    async with client.session(prefix=stream.prefix, sampling=GREEDY) as session:
        await session.update([Document(stream.document("a"), "a"), stream.document("b")])
        await until_prefilled(session, 2)
        await session.update([Document(id="a"), stream.document("c")])
        # 307 tokens, one held back: 306 were computed, 207 are still right.
        assert (await until_prefilled(session, 3)).invalidated_tokens == 306 - 207
        outcome = await collect(session.seal())
    # The last kept block is partly valid: private and not hashed blocks are
    # kept to the token, so at most what a full block loses is computed again.
    recomputed = outcome.finished.usage.computed_tokens - len(stream.prefix) - 200 - 2 * 100
    assert 0 <= recomputed < 32


async def test_nothing_is_sampled_before_the_seal(
    client: AsyncClient, reference: ReferenceEngine
) -> None:
    events = []
    async with client.session(
        prefix=APPENDS.prefix, suffix=APPENDS.suffix, sampling=GREEDY, on_event=events.append
    ) as session:
        await session.append(APPENDS.document("d0"))
        await until_prefilled(session, 2)
        assert not any(isinstance(event, TokenDelta) for event in events)
        outcome = await collect(session.seal())
    prompt = [*APPENDS.prefix, *APPENDS.document("d0"), *APPENDS.suffix]
    assert outcome.token_ids == reference.answer(prompt, 8)


async def test_the_first_token_is_sent_on_its_own(client: AsyncClient) -> None:
    """It comes from prefill; decode's tokens follow in later messages."""
    async with client.session(prefix=APPENDS.prefix, sampling=GREEDY) as session:
        await session.append(APPENDS.document("d1"))
        deltas = [event async for event in session.seal() if isinstance(event, TokenDelta)]
    assert len(deltas[0].token_ids) == 1
    assert sum(len(delta.token_ids) for delta in deltas) == 8


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
