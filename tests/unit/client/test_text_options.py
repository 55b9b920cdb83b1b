"""What a session says about its texts, and what it hears of documents that were too long."""

from __future__ import annotations

import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client import AsyncClient, ControlTokens, OversizedDocument, OversizedDocuments
from tests.fake_router import Conversation, FakeRouter
from tests.refusals import refused

CUT = OversizedDocument(
    sequence=2,
    index=0,
    id="a",
    action=OversizedDocuments.CUT,
    reason="CONTEXT_TOO_LONG",
    room_tokens=5,
    kept_tokens=4,
    kept_chars=9,
    cut_chars=0,
)


async def cuts(conversation: Conversation) -> None:
    """Says of the first document that it was cut, and answers."""
    await conversation.accept()
    await conversation.next()
    cut = pb.OversizedDocument(
        sequence=2,
        id="a",
        action=pb.OVERSIZED_DOCUMENTS_CUT,
        reason="CONTEXT_TOO_LONG",
        room_tokens=5,
        kept_tokens=4,
        kept_chars=9,
        cut_chars=0,
    )
    await conversation.send(oversized_document=cut)
    while (await conversation.next()) is not None:
        await conversation.answer("one")
        return


async def test_options_are_sent_by_name(client: AsyncClient, router: FakeRouter) -> None:
    options = {
        "control_tokens": "template",
        "oversized_documents": OversizedDocuments.REFUSE,
        "ttft_slo_ms": 250,
    }
    async with client.session(**options) as session:  # type: ignore[arg-type]
        await session.answer()
    opened = router.conversations[0].received[0].open
    assert opened.control_tokens == pb.CONTROL_TOKENS_TEMPLATE
    assert opened.oversized_documents == pb.OVERSIZED_DOCUMENTS_REFUSE
    assert opened.ttft_slo_ms == 250


async def test_by_default_all_text_is_data_and_a_long_document_fails(
    client: AsyncClient, router: FakeRouter
) -> None:
    async with client.session() as session:
        await session.answer()
    opened = router.conversations[0].received[0].open
    assert opened.control_tokens == pb.CONTROL_TOKENS_NONE
    assert opened.oversized_documents == pb.OVERSIZED_DOCUMENTS_FAIL
    assert not opened.HasField("ttft_slo_ms")


async def test_a_complete_prompt_has_the_option_too(
    client: AsyncClient, router: FakeRouter
) -> None:
    options = {"control_tokens": ControlTokens.TEMPLATE, "ttft_slo_ms": 1000}
    await client.generate("<s>a", **options).answer()  # type: ignore[arg-type]
    assert router.prompts[0].control_tokens == pb.CONTROL_TOKENS_TEMPLATE
    assert router.prompts[0].ttft_slo_ms == 1000


@pytest.mark.parametrize("value", [0, -1, 3_600_001, 1.5, "100", True])
async def test_a_deadline_is_whole_milliseconds_up_to_an_hour(
    client: AsyncClient, value: object
) -> None:
    with refused("between 1 and 3600000", field="open.ttft_slo_ms"):
        client.session(ttft_slo_ms=value)  # type: ignore[arg-type]
    with refused("between 1 and 3600000", field="ttft_slo_ms"):
        client.generate("a", ttft_slo_ms=value)  # type: ignore[arg-type]


async def test_an_unknown_option_is_refused_before_anything_is_sent(client: AsyncClient) -> None:
    for name, allowed in (
        ("control_tokens", "none, template or all"),
        ("oversized_documents", "fail, refuse or cut"),
    ):
        with pytest.raises(InvalidRequestError, match=f"{name} is 'x'; it must be {allowed}"):
            client.session(**{name: "x"})  # type: ignore[arg-type]


async def test_a_document_that_was_cut_is_an_event_and_stays_known(
    client: AsyncClient, router: FakeRouter
) -> None:
    router.script = cuts
    seen: list[object] = []
    async with client.session(oversized_documents="cut", on_event=seen.append) as session:
        await session.append("a document")
        answer = await session.answer()
        assert session.oversized_documents == (CUT,)
    assert CUT in seen
    assert answer.text == "one"
