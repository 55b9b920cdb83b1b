"""Two ranks prefill and one decodes, through the service: KV that is split by heads is put together."""

from __future__ import annotations

import os
import signal

import pytest

from experiments.faults.parts import Kind, living_parts
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from tests.cluster_kill import replica_of, successor_of
from tests.reference_engine import ReferenceEngine
from tests.streams import CASES, GREEDY, Stream, collect, play, send_event, until_prefilled

STREAM = Stream("ranks", CASES[1], {"a": 70, "b": 300, "c": 90, "d": 200})


@pytest.mark.slow
@pytest.mark.cluster("sensitive-2-to-1")
async def test_a_rank_of_prefill_is_killed_while_a_context_streams_in(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    expected = reference.answer(STREAM.prompt, 8)
    assert (await play(client, STREAM)).token_ids == expected
    before = replica_of(cluster, "prefill-0")
    opening = client.session(prefix=STREAM.prefix, suffix=STREAM.suffix, sampling=GREEDY)
    async with opening as session:
        sent: set[str] = set()
        await send_event(session, STREAM, 0, sent)
        await until_prefilled(session, 2)
        os.kill(_ranks(cluster)[1], signal.SIGKILL)
        for index in (1, 2):
            await send_event(session, STREAM, index, sent)
        outcome = await collect(session.seal())
    assert outcome.token_ids == expected
    assert outcome.finished.restarts == 1
    assert (await successor_of(cluster, before))["last_cause"] == "died"
    assert len(_ranks(cluster)) == 2
    assert (await play(client, STREAM)).token_ids == expected


def _ranks(cluster: Cluster) -> list[int]:
    """The processes of the prefill worker's model, in the order of their ranks."""
    parts = [each for each in living_parts(cluster.cluster_id) if each.kind is Kind.RANK]
    return [each.process.pid for each in parts if each.replica == "prefill-0"]
