"""All workers of a real cluster are replaced, one after the other, while sessions go on."""

from __future__ import annotations

import asyncio

import pytest
from typer.testing import Result

from stream2llm.client import AsyncClient, AsyncSession, SamplingParameters
from stream2llm.cluster.cluster import Cluster
from tests.cluster_pool import START_TIMEOUT_S
from tests.command_lines import cli
from tests.reference_engine import ReferenceEngine
from tests.streams import CASES, GREEDY, Outcome, Stream, collect, play, until_prefilled

pytestmark = pytest.mark.slow

WORKERS = ["prefill-0", "prefill-1", "decode-0", "decode-1"]
LENGTHS = {"a": 70, "b": 40, "c": 90, "d": 33}
STREAM = Stream("rollout", CASES[1], LENGTHS)
PROMPT = [1, 2, 3]
LONG_TOKENS = 200
LONG = SamplingParameters(max_tokens=LONG_TOKENS, temperature=0.0, ignore_eos=True)


@pytest.mark.cluster("sensitive-2x2")
async def test_no_session_fails_and_no_answer_changes(
    cluster: Cluster, client: AsyncClient, reference: ReferenceEngine
) -> None:
    """One that is open all along, long answers, and sessions that stream their context in."""
    document = STREAM.document("a")
    expected = {
        "stream": reference.answer(STREAM.prompt, 8),
        "long": reference.answer(PROMPT, LONG_TOKENS),
    }
    before = _incarnations(cluster)
    async with client.session(prefix=document, sampling=GREEDY) as staying:
        await until_prefilled(staying, 1)
        rolling = asyncio.create_task(asyncio.to_thread(_roll, cluster))
        async with asyncio.TaskGroup() as group:
            streams = group.create_task(_streams(client, rolling, staying))
            answers = group.create_task(_answers(client, rolling))
        assert (done := rolling.result()).exit_code == 0, done.output
        opened = await collect(staying.seal([5]))
    assert [each.token_ids for each in streams.result()] == [expected["stream"]] * len(
        streams.result()
    )
    assert [each.token_ids for each in answers.result()] == [expected["long"]] * len(
        answers.result()
    )
    prompt = [*document, *(4 for _ in streams.result()), 5]
    assert opened.token_ids == reference.answer(prompt, 8)
    # The first of the prefill workers had it, then the other one.
    assert opened.finished.restarts >= 1
    assert _incarnations(cluster) == {name: number + 1 for name, number in before.items()}
    assert f"{WORKERS[-1]} is replaced (4 of 4)" in done.output


def _roll(cluster: Cluster) -> Result:
    words = ["rollout", "restart", *WORKERS, "--limit", str(START_TIMEOUT_S)]
    return cli(*words, "--controller", cluster.http_address)


async def _streams(
    client: AsyncClient, rolling: asyncio.Task[Result], staying: AsyncSession
) -> list[Outcome]:
    """Each of them adds a token to the session that stays open, which must not be idle."""
    outcomes = []
    while not rolling.done():
        outcomes.append(await play(client, STREAM))
        await staying.append([4])
    return outcomes


async def _answers(client: AsyncClient, rolling: asyncio.Task[Result]) -> list[Outcome]:
    outcomes = []
    while not rolling.done():
        outcomes.append(await collect(client.generate(PROMPT, sampling=LONG)))
    return outcomes


def _incarnations(cluster: Cluster) -> dict[str, int]:
    replicas = cluster.status()["replicas"]
    return {r["name"]: r["incarnation"] for r in replicas if r["name"] in WORKERS}
