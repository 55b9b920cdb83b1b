"""A hundred and twenty sessions open at once, KV memory for a third: every answer exact, none stuck.

400 KV blocks on prefill hold about a third of these sessions. They append and
update in random order, idle while others compute, lose their KV and get it
back; hand-overs hold blocks besides.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from tests.polling import eventually
from tests.reference_engine import ReferenceEngine
from tests.scrape import scrape
from tests.streams import CASES, GREEDY, Stream, collect, send_event

pytestmark = pytest.mark.cluster("sensitive-1x1")

NUM_SESSIONS = 120


def a_stream(number: int, rng: random.Random) -> Stream:
    lengths = {name: rng.randint(30, 200) for name in "abcd"}
    return Stream(f"crowd-{number}", CASES[number % len(CASES)], lengths)


async def _num_preemptions(cluster: Cluster) -> float:
    counted = await asyncio.to_thread(scrape, cluster)
    return counted["stream2llm_preemptions_total"]


async def test_every_answer_is_exact(
    client: AsyncClient, cluster: Cluster, reference: ReferenceEngine
) -> None:
    rng = random.Random(11)
    streams = [a_stream(number, rng) for number in range(NUM_SESSIONS)]
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(
                client.session(prefix=stream.prefix, suffix=stream.suffix, sampling=GREEDY)
            )
            for stream in streams
        ]
        turns = [n for n, stream in enumerate(streams) for _ in stream.events]
        rng.shuffle(turns)
        events = [iter(range(len(stream.events))) for stream in streams]
        sent: list[set[str]] = [set() for _ in streams]
        for number in turns:
            index = next(events[number])
            await send_event(sessions[number], streams[number], index, sent[number])
        # Sealed sessions are served one after the other and need no more than there is: what is
        # short are the blocks of those that are open.
        await eventually(lambda: _num_preemptions(cluster), lambda number: number > 10, 120)
        outcomes = await asyncio.gather(*(collect(session.seal()) for session in sessions))
    prompts = [stream.prompt for stream in streams]
    expected = await asyncio.to_thread(reference.answers, prompts, 8)
    assert [outcome.token_ids for outcome in outcomes] == expected
