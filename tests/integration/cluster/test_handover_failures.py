"""Failures of the field while KV is handed over ahead of the seal, on real engines.

The numbers are those of the list of failures that neighbouring systems met. The
`client` fixture fails a test when a worker still holds a block three leases
after its end.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Mapping
from typing import Any

import pytest

from stream2llm.client import AsyncClient, AsyncSession, SamplingParameters, TokenDelta
from stream2llm.cluster.cluster import Cluster
from tests.cluster_kill import incarnation_of, process_of, until_replaced
from tests.cluster_pool import num_blocks_held, until_blocks_are_free
from tests.polling import eventually
from tests.reference_engine import ReferenceEngine
from tests.scrape import scrape
from tests.streams import GREEDY, Stream, collect, play, send_event, until_prefilled

ONE_BY_ONE = pytest.mark.cluster("sensitive-1x1")


def RANKS(test: Any) -> Any:  # noqa: N802 - a mark like the others
    """Slow, on a cluster whose models have processes of their own."""
    return pytest.mark.slow(pytest.mark.cluster("sensitive-ranks")(test))


TIGHT = pytest.mark.cluster("sensitive-tight")
ONE_TOKEN = SamplingParameters(max_tokens=1, temperature=0.0)
ENDLESS = SamplingParameters(max_tokens=500, temperature=0.0, ignore_eos=True)
# Longer than a lease, shorter than the controller waits for an answer.
LONGER_THAN_A_LEASE_S = 13


def a_stream(name: str, documents: int = 4, length: int = 400) -> Stream:
    names = [f"d{number}" for number in range(documents)]
    events = tuple(("append", (each,)) for each in names)
    return Stream(name, events, dict.fromkeys(names, length))


def streamed(client: AsyncClient, stream: Stream) -> AsyncSession:
    """A session that streams its hand-over, to be opened."""
    return client.session(
        prefix=stream.prefix, suffix=stream.suffix, sampling=GREEDY, handover="streamed"
    )


@ONE_BY_ONE
async def test_cancelled_at_random_moments(client: AsyncClient, reference: ReferenceEngine) -> None:
    """A cancel while it computes, while decode fetches, around the hand-over, while it decodes."""

    async def doomed(number: int) -> None:
        stream, is_paced = a_stream(f"doomed-{number}"), number % 2 == 0
        playing = play(client, stream, ENDLESS, paced=is_paced, handover="streamed")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(playing, 0.04 * number)

    survivor_stream = a_stream("survivor")
    async with asyncio.TaskGroup() as group:
        survivor = group.create_task(play(client, survivor_stream, handover="streamed"))
        for number in range(30):
            group.create_task(doomed(number))
    assert survivor.result().token_ids == reference.answer(survivor_stream.prompt, 8)


@ONE_BY_ONE
async def test_cancelled_between_the_first_token_and_decode(client: AsyncClient) -> None:
    """The blocks of the hand-over and those prefetched are free at once."""
    for number in range(4):
        prefix = a_stream(f"f16-{number}", documents=1).document("d0")
        async with client.session(prefix=prefix, sampling=ENDLESS, handover="streamed") as session:
            await until_prefilled(session, 1)
            async for event in session.seal():
                if isinstance(event, TokenDelta):
                    break
    await until_blocks_are_free(client.server_info, timeout_s=15)


@ONE_BY_ONE
async def test_updates_that_chase_each_other(
    client: AsyncClient, reference: ReferenceEngine
) -> None:
    """Each update finds offers, fetches and aborts of the one before under way."""
    rng = random.Random(1)
    names = [f"d{number}" for number in range(12)]
    lengths = {name: rng.choice([20, 64, 150, 300]) for name in names}
    for round_number in range(2):
        events = []
        current = names[:6]
        for _ in range(8):
            place = rng.randrange(len(current))
            current = [*current[:place], *rng.sample(names, k=2), *current[place:]][:7]
            events.append(("update", tuple(dict.fromkeys(current))))
        stream = Stream(f"chase-{round_number}", tuple(events), lengths)
        outcome = await play(client, stream, paced=round_number % 2 == 0, handover="streamed")
        assert outcome.token_ids == reference.answer(stream.prompt, 8)


@RANKS
async def test_a_rank_that_slept_longer_than_the_lease(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    """What it reads when it wakes may be anything; none of it shows in an answer.

    Its EngineCore is awake meanwhile, and gives signs of life.
    """
    stream, other = a_stream("slept"), a_stream("meanwhile", documents=2, length=900)
    victim = process_of(cluster, "decode", "Worker")
    async with streamed(client, stream) as session:
        sent: set[str] = set()
        await send_event(session, stream, 0, sent)
        os.kill(victim, signal.SIGSTOP)
        try:
            await send_event(session, stream, 1, sent)
            await until_prefilled(session, 3)
            await asyncio.sleep(LONGER_THAN_A_LEASE_S)
            # Others take blocks that were offered.
            async with client.session(prefix=other.prompt, handover="streamed") as crowding:
                await until_prefilled(crowding, 1)
        finally:
            os.kill(victim, signal.SIGCONT)
        for index in (2, 3):
            await send_event(session, stream, index, sent)
            await until_prefilled(session, index + 2)
        outcome = await collect(session.seal())
    assert outcome.token_ids == reference.answer(stream.prompt, 8)
    assert (await play(client, stream, handover="streamed")).token_ids == outcome.token_ids


@RANKS
async def test_a_rank_of_decode_is_killed_while_it_fetches(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    """The session goes on, what was offered is free after a lease, and the answer is right."""
    incarnation = incarnation_of(cluster.status(), "decode")
    stream = a_stream("decode-dies")
    async with streamed(client, stream) as session:
        sent: set[str] = set()
        await send_event(session, stream, 0, sent)
        os.kill(process_of(cluster, "decode", "Worker"), signal.SIGKILL)
        await send_event(session, stream, 1, sent)
        await until_prefilled(session, 3)
        ticks = await _tick_until(session, until_replaced(cluster, "decode", incarnation))
        await _goes_on(session, stream, sent, ticks, reference)


async def _goes_on(
    session: AsyncSession,
    stream: Stream,
    sent: set[str],
    ticks: list[int],
    reference: ReferenceEngine,
) -> None:
    """The session's last documents, behind ticks, and its answer."""
    for index in (2, 3):
        await send_event(session, stream, index, sent)
    outcome = await collect(session.seal())
    documents = [stream.document(name) for name in stream.final_documents]
    context = [*documents[0], *documents[1], *ticks, *documents[2], *documents[3]]
    prompt = [*stream.prefix, *context, *stream.suffix]
    assert outcome.token_ids == reference.answer(prompt, 8)


async def _tick_until(session: AsyncSession, awaitable: Awaitable[None]) -> list[int]:
    """Keeps a session from being idle for too long; the tokens it has got by that."""
    waiting, ticks = asyncio.ensure_future(awaitable), list[int]()
    while not (await asyncio.wait({waiting}, timeout=5))[0]:
        ticks.append(100 + len(ticks))
        await session.append(ticks[-1:])
    await waiting
    return ticks


@ONE_BY_ONE
@pytest.mark.slow
async def test_prefill_is_killed_while_decode_fetches(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    """The session goes on when prefill is back, decode holds nothing, and the next one is right."""
    incarnation = incarnation_of(cluster.status(), "prefill")
    stream = a_stream("prefill-dies")
    async with streamed(client, stream) as session:
        sent: set[str] = set()
        await send_event(session, stream, 0, sent)
        os.kill(process_of(cluster, "prefill", "EngineCore"), signal.SIGKILL)
        for index in (1, 2, 3):
            await send_event(session, stream, index, sent)
        outcome = await collect(session.seal())
    assert outcome.token_ids == reference.answer(stream.prompt, 8)
    assert outcome.finished.restarts == 1
    await _comes_back(cluster, client, reference, "prefill", incarnation, stream)


async def _comes_back(
    cluster: Cluster,
    client: AsyncClient,
    reference: ReferenceEngine,
    role: str,
    incarnation: int,
    stream: Stream,
) -> None:
    """Another one stands in the killed worker's place, and the same context is answered."""
    await until_replaced(cluster, role, incarnation)
    again = await play(client, stream, handover="streamed")
    assert again.token_ids == reference.answer(stream.prompt, 8)


def _engines(cluster: Cluster) -> dict[str, int]:
    """The EngineCore process of each role's only worker."""
    return {role: process_of(cluster, role, "EngineCore") for role in ("prefill", "decode")}


@pytest.mark.slow
@pytest.mark.cluster("sensitive-tcp")
@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_killed_in_the_middle_of_a_read(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine, role: str
) -> None:
    """A worker dies while decode surely reads: over TCP it cannot end while prefill stands still."""
    incarnation = incarnation_of(cluster.status(), role)
    stream = a_stream(f"mid-read-{role}")
    pids = _engines(cluster)
    async with streamed(client, stream) as session:
        sent: set[str] = set()
        num_before = await _num_fetches(cluster)
        await send_event(session, stream, 0, sent)
        await eventually(lambda: _num_fetches(cluster), lambda num: num > num_before)
        tick = await _read_that_stands_still(cluster, client, session, stream, pids, sent)
        os.kill(pids[role], signal.SIGKILL)
        if role == "decode":
            os.kill(pids["prefill"], signal.SIGCONT)
        await _goes_on(session, stream, sent, tick, reference)
    await _comes_back(cluster, client, reference, role, incarnation, stream)


async def _read_that_stands_still(
    cluster: Cluster,
    client: AsyncClient,
    session: AsyncSession,
    stream: Stream,
    pids: Mapping[str, int],
    sent: set[str],
) -> list[int]:
    """Returns when decode reads the stream's second document and cannot end; one token was sent.

    Both sides know each other from the first one's read.
    """
    num_before = await _num_fetches(cluster)
    os.kill(pids["decode"], signal.SIGSTOP)
    try:
        await send_event(session, stream, 1, sent)
        await until_prefilled(session, 3)
        # What the router hears of this step, it hears behind the offer of the one before.
        tick = [99]
        await session.append(tick)
        await until_prefilled(session, 4)
        os.kill(pids["prefill"], signal.SIGSTOP)
    finally:
        os.kill(pids["decode"], signal.SIGCONT)
    try:
        await eventually(lambda: num_blocks_held(client, "decode"), bool)
        assert await _num_fetches(cluster) == num_before
    except BaseException:
        os.kill(pids["prefill"], signal.SIGCONT)
        raise
    return tick


async def _num_fetches(cluster: Cluster) -> float:
    """Fetches at decode that have ended."""
    return (await asyncio.to_thread(scrape, cluster))["stream2llm_fetches_total"]


@pytest.mark.slow
@pytest.mark.cluster("sensitive-tcp")
@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_killed_between_the_first_token_and_the_second(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine, role: str
) -> None:
    """A worker dies during the hand-over itself: decode has the answer, and cannot have read its last KV."""
    incarnation = incarnation_of(cluster.status(), role)
    stream = a_stream(f"mid-handover-{role}")
    pids = _engines(cluster)
    async with streamed(client, stream) as session:
        sent: set[str] = set()
        for index in range(4):
            await send_event(session, stream, index, sent)
        await until_prefilled(session, 5)
        os.kill(pids["decode"], signal.SIGSTOP)
        answer = aiter(session.seal())
        while not isinstance(first := await anext(answer), TokenDelta):
            pass
        os.kill(pids[role], signal.SIGKILL)
        if role == "prefill":
            os.kill(pids["decode"], signal.SIGCONT)
        rest = await collect(answer)
    assert [*first.token_ids, *rest.token_ids] == reference.answer(stream.prompt, 8)
    assert rest.finished.restarts >= 1
    await _comes_back(cluster, client, reference, role, incarnation, stream)


@TIGHT
@pytest.mark.slow
async def test_pinned_blocks_neither_deadlock_nor_starve_prefill(
    client: AsyncClient, reference: ReferenceEngine
) -> None:
    """Twenty sessions on KV memory for a few, all of which offer what they have."""
    streams = [a_stream(f"tight-{number}", documents=3, length=150) for number in range(20)]
    async with asyncio.timeout(300), asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(play(client, stream, paced=number % 2 == 0, handover="streamed"))
            for number, stream in enumerate(streams)
        ]
    for stream, task in zip(streams, tasks, strict=True):
        assert task.result().token_ids == reference.answer(stream.prompt, 8)
