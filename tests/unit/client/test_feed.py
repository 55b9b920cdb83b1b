"""Sessions fed from asynchronous sources."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from stream2llm.client import Document, DocumentRef
from stream2llm.client.inputs import DocumentLike
from stream2llm.integrations.feed import append_from, by_reference, update_from


class Recorder:
    """A session that notes what it is sent."""

    def __init__(self) -> None:
        self.events: list[tuple[DocumentLike, ...]] = []

    async def append(self, *documents: DocumentLike) -> None:
        await asyncio.sleep(0)
        self.events.append(documents)

    async def update(self, documents: Iterable[DocumentLike]) -> None:
        self.events.append(tuple(documents))


async def test_documents_of_several_sources_are_appended_when_they_come() -> None:
    session, second_may = Recorder(), asyncio.Event()

    async def slow() -> AsyncIterator[str]:
        yield "slow 1"
        await second_may.wait()
        yield "slow 2"

    async def quick() -> AsyncIterator[str]:
        yield "quick 1"
        yield "quick 2"
        second_may.set()

    assert await append_from(session, slow(), quick()) == 4
    assert session.events[-1] == ("slow 2",)
    assert {text for (text,) in session.events} == {"slow 1", "quick 1", "quick 2", "slow 2"}


async def test_what_a_source_raises_ends_the_others() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            await asyncio.Event().wait()
            yield "never"
        finally:
            ended.set()

    async def broken() -> AsyncIterator[str]:
        yield "one"
        raise OSError("the index is gone")

    with pytest.raises(OSError, match="the index is gone"):
        await append_from(Recorder(), endless(), broken())
    assert ended.is_set()


async def test_lists_name_by_id_what_they_sent_before() -> None:
    a, b, new_a = Document("A", id="a"), Document("B", id="b"), Document("A2", id="a")

    async def ranked() -> AsyncIterator[list[Document]]:
        yield [a]
        yield [b, a]
        yield [new_a, b]
        yield [new_a]

    session = Recorder()
    assert await update_from(session, ranked()) == 4
    ref_a, ref_b = DocumentRef("a"), DocumentRef("b")
    assert session.events == [(a,), (b, ref_a), (new_a, ref_b), (ref_a,)]


def test_a_document_without_an_id_is_sent_again() -> None:
    document = Document("text")
    sent: dict[str, object] = {}
    assert by_reference([document, document], sent) == (document, document)
    assert not sent
