"""One-shot prompts."""

from __future__ import annotations

import grpc
import pytest

from stream2llm.api.errors import InternalError, InvalidRequestError, OverloadedError
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client import Finished, SamplingParameters, TokenDelta
from tests import fake_router
from tests.fake_router import Conversation

pytestmark = pytest.mark.usefixtures("no_test_hangs")


async def test_text_ids_and_chat_prompts(client, router):
    sampling = SamplingParameters(seed=7)
    answer = await client.generate("text", sampling=sampling).answer()
    await client.generate([1, 2, 3]).answer()
    await client.generate([{"role": "user", "content": "Hi"}]).answer()

    assert answer.text == "one two three"
    text, ids, chat = router.prompts
    assert (text.text, text.sampling.seed) == ("text", 7)
    assert list(ids.token_ids.ids) == [1, 2, 3]
    assert chat.chat.messages[0].content == "Hi"


async def test_events_come_one_by_one(client):
    events = [event async for event in client.generate("text")]
    assert [type(event) for event in events] == [TokenDelta] * 3 + [Finished]


async def test_several_answers_come_by_their_index(client, router):
    async def two(conversation: Conversation) -> None:
        for index, text in ((0, "one"), (1, "uno"), (1, " dos"), (0, " two")):
            delta = pb.TokenDelta(text=text, token_ids=[index], index=index)
            await conversation.send(delta=delta)
        for index in (1, 0):
            finished = fake_router.finished(2)
            finished.index = index
            await conversation.send(finished=finished)

    router.script = two
    sampling = SamplingParameters(n=2)
    answers = await client.generate("text", sampling=sampling).answers()
    assert [(each.index, each.text, each.token_ids) for each in answers] == [
        (0, "one two", (0, 0)),
        (1, "uno dos", (1, 1)),
    ]
    assert router.prompts[0].sampling.n == 2
    with pytest.raises(InvalidRequestError, match="answers") as caught:
        await client.generate("text", sampling=sampling).answer()
    assert caught.value.field == "sampling.n"


async def test_an_answer_that_was_not_asked_for_is_the_servers_fault(client, router):
    async def other(conversation: Conversation) -> None:
        await conversation.send(delta=pb.TokenDelta(text="one", index=1))
        await fake_router.forever()

    router.script = other
    with pytest.raises(InternalError, match="index 1"):
        await client.generate("text").answer()


async def test_an_error_is_typed(client, router):
    async def refuse(conversation: Conversation) -> None:
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
        await conversation.fail(code, "full", fake_router.error_info("TOO_MANY_SESSIONS"))

    router.script = refuse
    with pytest.raises(OverloadedError, match="full") as caught:
        await client.generate("text").answer()
    assert caught.value.reason == "TOO_MANY_SESSIONS"


async def test_an_answer_is_whole_when_only_the_status_behind_it_is_lost(client, router):
    async def breaks_behind_the_answer(conversation: Conversation) -> None:
        await conversation.answer("one", " two")
        await conversation.fail(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    router.script = breaks_behind_the_answer
    assert (await client.generate("text").answer()).text == "one two"


async def test_leaving_the_stream_cancels_the_rpc(client, router):
    async def endless(conversation: Conversation) -> None:
        await conversation.answer_begins("one")
        await fake_router.forever()

    router.script = endless
    async with client.generate("text") as stream:
        assert await anext(stream) == TokenDelta("one", (0,))
    assert await router.ends.get() == "cancelled"


async def test_what_cannot_be_sent_is_refused_here(client):
    with pytest.raises(InvalidRequestError, match=r"prompt\[1\] is -2"):
        client.generate([1, -2])
    with pytest.raises(InvalidRequestError, match=r"sampling.max_tokens is -1"):
        client.generate("x", sampling=SamplingParameters(max_tokens=-1))
    with pytest.raises(InvalidRequestError, match="role"):
        client.generate([{"content": "no role"}])
