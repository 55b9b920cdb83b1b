"""Thirty sessions, KV memory on prefill for about eight: exact whether it is swapped or not.

Through the whole cluster. Sessions append and update, some are cancelled in
between; then the prefill engine is killed under the same load.
tests/integration/engine/test_exact_under_pressure.py has the same on an engine, step by step.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import AsyncExitStack

import pytest

from stream2llm.client import AsyncClient, AsyncSession
from stream2llm.cluster.cluster import Cluster
from tests.cluster_kill import incarnation_of, process_of, until_replaced
from tests.polling import eventually
from tests.reference_engine import ReferenceEngine
from tests.scrape import scrape
from tests.streams import CASES, GREEDY, Outcome, Stream, collect, send_event, until_once_prefilled

pytestmark = pytest.mark.slow

NUM_SESSIONS = 30
# Under one policy each: test_policy.py switches all of them in a cluster that is short of memory,
# and test_exact_under_pressure.py has each on an engine.
CASES_OF_MODES = [
    pytest.param(mode, policy, id=mode, marks=pytest.mark.cluster(kind))
    for mode, kind, policy in (
        ("swap", "sensitive-swap", "default"),
        ("cost", "sensitive-tight", "mcps"),
    )
]


def streams(salt: str) -> list[Stream]:
    rng = random.Random(salt)
    return [
        Stream(f"{salt}-{n}", CASES[n % len(CASES)], {x: rng.randint(40, 140) for x in "abcd"})
        for n in range(NUM_SESSIONS)
    ]


class Crowd:
    """Sessions of which all events but the seal are sent, in random order."""

    def __init__(self, client: AsyncClient, crowd: list[Stream]) -> None:
        self.streams = crowd
        self._client = client
        self.sessions: list[AsyncSession] = []

    async def send(self, stack: AsyncExitStack) -> None:
        for stream in self.streams:
            session = self._client.session(
                prefix=stream.prefix, suffix=stream.suffix, sampling=GREEDY
            )
            self.sessions.append(await stack.enter_async_context(session))
        turns = [n for n, stream in enumerate(self.streams) for _ in stream.events]
        random.Random(5).shuffle(turns)
        events = [iter(range(len(stream.events))) for stream in self.streams]
        sent: list[set[str]] = [set() for _ in self.streams]
        for number in turns:
            index = next(events[number])
            await send_event(self.sessions[number], self.streams[number], index, sent[number])

    async def until_prefilled(self, window_tokens: int) -> None:
        """Each was prefilled at some time, and many have lost it to the others since."""
        await asyncio.gather(
            *(
                until_once_prefilled(session, len(stream.events) + 1, window_tokens)
                for session, stream in zip(self.sessions, self.streams, strict=True)
            )
        )

    async def answers(self, numbers: list[int]) -> list[Outcome | BaseException]:
        """Preempts these sessions; the others are left as they are."""
        reading = (collect(self.sessions[number].seal()) for number in numbers)
        return await asyncio.gather(*reading, return_exceptions=True)


async def play(
    cluster: Cluster, client: AsyncClient, crowd: list[Stream], reference: ReferenceEngine
) -> None:
    """Every seventh session is cancelled where it is; the others' answers are exact."""
    kept = [n for n in range(NUM_SESSIONS) if n % 7]
    async with AsyncExitStack() as stack:
        sent = Crowd(client, crowd)
        await sent.send(stack)
        await sent.until_prefilled(cluster.config.router.limits.credit_window_tokens)
        outcomes = await sent.answers(kept)
    prompts = [crowd[n].prompt for n in kept]
    expected = await asyncio.to_thread(reference.answers, prompts, 8)
    assert [getattr(outcome, "token_ids", outcome) for outcome in outcomes] == expected


async def until_the_offload_pool_is_empty(cluster: Cluster) -> None:
    async def used() -> float:
        return (await asyncio.to_thread(scrape, cluster))["stream2llm_offload_pool_blocks/used"]

    await eventually(used, lambda now: not now, 30)


@pytest.mark.parametrize(("mode", "policy"), CASES_OF_MODES)
async def test_every_answer_is_exact(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine, mode: str, policy: str
) -> None:
    before = await asyncio.to_thread(scrape, cluster)
    await asyncio.to_thread(cluster.set_policy, policy)
    await play(cluster, client, streams(f"{mode}-{policy}"), reference)
    await asyncio.to_thread(cluster.set_policy, "fcfs")
    await until_the_offload_pool_is_empty(cluster)
    gained = await asyncio.to_thread(scrape, cluster)
    gained.subtract(before)
    assert gained["stream2llm_preemptions_total"] > 10
    assert gained["stream2llm_swap_failures_total"] == 0
    assert gained["stream2llm_preemptions_total/swap"] > 0
    assert gained["stream2llm_swapped_bytes_total/in"] > 0
    if mode != "cost":
        # What is swapped depends on the room there is, nothing else.
        assert gained["stream2llm_preemptions_total/recompute"] > 0


@pytest.mark.cluster("sensitive-swap")
async def test_kill_under_pressure(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    """All that it had goes on at its successor, which starts with nothing."""
    crowd = streams("killed")
    incarnation = incarnation_of(cluster.status(), "prefill")
    async with AsyncExitStack() as stack:
        sent = Crowd(client, crowd)
        await sent.send(stack)
        os.kill(process_of(cluster, "prefill", "EngineCore"), signal.SIGKILL)
        outcomes = await sent.answers(list(range(NUM_SESSIONS)))
    expected = await asyncio.to_thread(reference.answers, [each.prompt for each in crowd], 8)
    assert [getattr(outcome, "token_ids", outcome) for outcome in outcomes] == expected
    await until_replaced(cluster, "prefill", incarnation)
    await play(cluster, client, crowd, reference)
    await until_the_offload_pool_is_empty(cluster)
