"""A seal that brings the last change of the context: one message, and one for prefill."""

from __future__ import annotations

from typing import Any

import pytest

from stream2llm.api.v1 import inference_pb2 as pb
from tests.router_ring import Conversation, Ring, as_document, named

GREEDY = pb.SamplingParameters(temperature=0, max_tokens=3)


async def opened(ring: Ring, **fields: Any) -> Conversation:
    session = await ring.opened("P ", " Q?", sampling=GREEDY, **fields)
    accepted = await session.next("accepted")
    assert accepted.seal_takes_change
    await ring.told(1)
    return session


def appended(*documents: Any) -> Any:
    return pb.AppendContext(documents=map(as_document, documents))


def updated(*documents: Any) -> Any:
    return pb.UpdateContext(documents=map(as_document, documents))


def prompt_of(ring: Ring, *texts: str) -> list[int]:
    return [token_id for text in ("P ", *texts, " Q?") for token_id in ring.encode(text)]


async def test_an_append_reaches_prefill_with_the_seal_in_one_message(ring: Ring) -> None:
    session = await opened(ring)
    answered = await session.finish(append=appended("the fox ", "jumps "))
    prompt = prompt_of(ring, "the fox ", "jumps ")
    assert ring.record.sequence == prompt
    assert answered.token_ids == ring.brain.answer(prompt, 3)
    assert len(ring.record.splices) == 2  # the prefix, and everything else


async def test_an_update_may_name_documents_sent_before(ring: Ring) -> None:
    session = await opened(ring)
    await session.append(("a", "the fox "), ("b", "jumps "))
    await ring.told(2)
    answered = await session.finish(update=updated(("c", "over "), named("a")))
    prompt = prompt_of(ring, "over ", "the fox ")
    assert ring.record.sequence == prompt
    assert answered.token_ids == ring.brain.answer(prompt, 3)
    assert len(ring.record.splices) == 3


async def test_the_suffix_of_the_seal_follows_its_documents(ring: Ring) -> None:
    session = await opened(ring)
    await session.finish(append=appended("the fox "), suffix=pb.Content(text=" Why?"))
    texts = ("P ", "the fox ", " Why?")
    assert ring.record.sequence == [token_id for text in texts for token_id in ring.encode(text)]


async def test_its_documents_need_no_credit(make_ring: Any) -> None:
    ring: Ring = await make_ring(credit_window_tokens=1)
    ring.prefill.may_compute.clear()
    session = await opened(ring)
    await session.append("the quick brown fox ")
    await session.seal(append=appended("jumps "))
    ring.prefill.may_compute.set()
    answered = await session.answer()
    assert ring.record.sequence == prompt_of(ring, "the quick brown fox ", "jumps ")
    assert len(answered.token_ids) == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"append": appended(named("a"))}, "seal.append.documents[0].content"),
        ({"update": updated(named("a"))}, "seal.update.documents[0].id"),
    ],
)
async def test_an_error_names_the_field_in_the_seal(
    ring: Ring, change: dict[str, Any], field: str
) -> None:
    session = await opened(ring)
    await session.seal(**change)
    failure = await session.failure()
    assert field in str(failure.trailing_metadata())


async def test_documents_that_are_too_long_are_reported_with_the_seals_sequence(
    ring: Ring,
) -> None:
    session = await opened(ring, oversized_documents=pb.OVERSIZED_DOCUMENTS_REFUSE)
    await session.seal(append=appended("fox " * 2000))
    oversized = await session.next("oversized_document")
    assert oversized.sequence == 2
    assert len((await session.answer()).token_ids) == 3


async def test_a_complete_prompt_has_no_such_seal(ring: Ring) -> None:
    call = ring.stub.Generate(pb.GenerateRequest(text="the fox ", sampling=GREEDY))
    accepted = [each.accepted async for each in call if each.HasField("accepted")]
    assert [each.seal_takes_change for each in accepted] == [False]
