"""A rank of a real worker stands still: its EngineCore is well, and waits for it within a step.

test_kill_in_each_phase.py has the other processes of a worker, and a router.
"""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from tests.cluster_kill import process_of, replica_of, successor_of
from tests.cluster_pool import START_TIMEOUT_S
from tests.held_sessions import LONG, LONG_TOKENS
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Stream, collect, play, read_tokens, until_prefilled

SMALL = Stream("hung", (("append", ("a",)),), {"a": 40})
MORE = [5, 6, 7]


@pytest.mark.slow
@pytest.mark.cluster("sensitive-ranks")
async def test_a_rank_stands_still(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    """An answer has left the worker, and goes on; a context goes on at the successor."""
    before = replica_of(cluster, "prefill-0")
    prefix = SMALL.document("a")
    answering = client.session(prefix=prefix, sampling=LONG)
    async with answering, client.session(prefix=prefix, sampling=GREEDY) as streaming:
        answer = aiter(answering.seal())
        tokens = await read_tokens(answer, 3)
        await until_prefilled(streaming, 1)
        os.kill(process_of(cluster, "prefill", "Worker"), signal.SIGSTOP)
        await streaming.append(MORE)  # work, without which a rank is not missed
        async with asyncio.timeout(2 * START_TIMEOUT_S):
            rest, streamed = await asyncio.gather(collect(answer), collect(streaming.seal()))
    assert [*tokens, *rest.token_ids] == reference.answer(prefix, LONG_TOKENS)
    assert streamed.token_ids == reference.answer([*prefix, *MORE], 8)
    assert (rest.finished.restarts, streamed.finished.restarts) == (0, 1)
    after = await successor_of(cluster, before)
    assert after["last_cause"] == "hung", after["last_error"]
    assert (await play(client, SMALL)).token_ids == reference.answer(SMALL.prompt, 8)
