"""The only worker of a role dies: its sessions wait for its successor, with exact answers.

kill -9 of one process of each role; test_kill_in_each_phase.py kills and stops parts of a larger
cluster, test_handover_failures.py those that fetch KV, ranks too.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from experiments.lab_cluster import workers
from stream2llm.client import AsyncClient, SamplingParameters
from stream2llm.cluster.cluster import Cluster
from stream2llm.engine import side_channel
from tests.cluster_kill import incarnation_of, process_of, side_channel_of, until_replaced
from tests.reference_engine import ReferenceEngine
from tests.side_channel_garbage import throw_garbage
from tests.streams import GREEDY, Stream, collect, play, read_tokens, until_prefilled

PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.9, "repetition_penalty": 1.3}
PROMPT = [1, 2, 3]
# Longer than what decode is ahead of its client.
LONG_TOKENS = 600
LONG = SamplingParameters(max_tokens=LONG_TOKENS, temperature=0.0, ignore_eos=True, **PENALTIES)
SMALL = Stream("kill", (("append", ("a",)),), {"a": 40})

# An engine takes most of a minute to come back; test_controller_fake.py kills processes every day.
VICTIMS = [("prefill", "actor"), ("decode", "EngineCore")]


@pytest.mark.slow
@pytest.mark.cluster("sensitive-1x1")
@pytest.mark.parametrize(("role", "which"), VICTIMS)
async def test_kill(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine, role: str, which: str
) -> None:
    """Its successor shakes hands with a worker on whose side channel there was garbage."""
    incarnation = incarnation_of(cluster.status(), role)
    partner = "decode" if role == "prefill" else "prefill"
    host, port = side_channel_of(cluster, partner)
    partners_incarnation = incarnation_of(cluster.status(), partner)
    await asyncio.to_thread(throw_garbage, host, port, random.Random(role))
    pids = [pid for worker in workers(cluster, role) for pid in worker.pids]
    streaming = client.session(prefix=SMALL.document("a"), sampling=GREEDY)
    async with streaming, client.session(prefix=PROMPT, sampling=LONG) as answering:
        await until_prefilled(streaming, 1)
        answer = aiter(answering.seal())
        tokens = await read_tokens(answer, 3)
        os.kill(process_of(cluster, role, which), signal.SIGKILL)
        await streaming.append([4])
        rest = await collect(answer)
        streamed = await collect(streaming.seal([5]))
    assert [*tokens, *rest.token_ids] == reference.answer(PROMPT, LONG_TOKENS, **PENALTIES)
    assert streamed.token_ids == reference.answer([*SMALL.document("a"), 4, 5], 8)
    # The answer had left the prefill worker, and the context had not come to decode.
    assert rest.finished.restarts == (1 if role == "decode" else 0)
    assert streamed.finished.restarts == (1 if role == "prefill" else 0)
    await until_replaced(cluster, role, incarnation)
    assert (await play(client, SMALL)).token_ids == reference.answer(SMALL.prompt, 8)
    assert incarnation_of(cluster.status(), partner) == partners_incarnation
    assert side_channel.ask(host, port, timeout_s=30) == ""
    assert not [pid for pid in pids if _exists(pid)]


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
