"""Context that streams into a whole cluster over HTTP gives the answer of a gRPC session."""

from __future__ import annotations

import pytest
from openai import AsyncOpenAI

from stream2llm.client import Answer, AsyncClient, SamplingParameters
from stream2llm.cluster.cluster import Cluster
from tests.lane_client import LaneClient, document, user

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.cluster("smollm2-1x1"),
]
MODEL = "smollm2-135m-instruct"
GREEDY = {"max_output_tokens": 24, "temperature": 0}
SYSTEM = "Answer from these documents.\n{{context}}"
LAKES = "A lake is a body of water that is surrounded by land. " * 8
RIVERS = "A river is a natural stream of water that flows to the sea. " * 8
QUESTION = "What is a river?"


async def of_a_session(client: AsyncClient, chat: list[dict[str, str]]) -> Answer:
    greedy = SamplingParameters(max_tokens=24, temperature=0.0)
    async with client.session(chat=chat, sampling=greedy) as session:
        await session.append(RIVERS, LAKES)
        return await session.answer()


async def test_a_lane_answers_as_a_session_does(cluster: Cluster, client: AsyncClient) -> None:
    async with (
        AsyncOpenAI(base_url=cluster.gateway_urls[0], api_key="any") as sdk,
        sdk.responses.connect() as connection,
    ):
        lane = LaneClient(connection, MODEL)
        system = {"type": "message", "role": "system", "content": SYSTEM}
        slot = {"context_slot": "{{context}}"}
        root = await lane.prepare(system, stream2llm=slot, **GREEDY)
        await lane.prepare(document(LAKES, "lakes"), previous_response_id=root.id, **GREEDY)
        update = await lane.prepare(
            document(RIVERS, "rivers"),
            document(None, "lakes"),
            previous_response_id=root.id,
            **GREEDY,
        )
        fork = await lane.prepare(stream_id="other", previous_response_id=update.id, **GREEDY)
        answer = await lane.answer(user(QUESTION), previous_response_id=update.id, **GREEDY)
        forked = await lane.answer(
            user(QUESTION), stream_id="other", previous_response_id=fork.id, **GREEDY
        )
        more = await lane.answer(user("And a lake?"), previous_response_id=answer.id, **GREEDY)
    said = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    whole = await of_a_session(client, said)
    assert answer.output_text == forked.output_text == whole.text
    assert answer.usage.input_tokens == whole.finished.usage.prompt_tokens
    said += [
        {"role": "assistant", "content": answer.output_text},
        {"role": "user", "content": "And a lake?"},
    ]
    assert more.output_text == (await of_a_session(client, said)).text
    # The conversation so far is found in the prefix cache.
    assert more.usage.input_tokens_details.cached_tokens > 0
