"""Feeds a session from asynchronous sources: each document, or each new list, when it comes.

A source is anything for `async for`: an async generator over a crawl, a paged search, the
results of a retriever. What a source raises ends the feeding, and its other sources.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, MutableMapping
from typing import Protocol

from stream2llm.api.requests import Content, Document
from stream2llm.api.tasks import TaskGroup, single_error
from stream2llm.client.inputs import DocumentLike, DocumentRef


class Appends(Protocol):
    """A session that takes more documents."""

    async def append(self, *documents: DocumentLike) -> None: ...


class Updates(Protocol):
    """A session that takes new lists."""

    async def update(self, documents: Iterable[DocumentLike]) -> None: ...


async def append_from(session: Appends, *sources: AsyncIterable[DocumentLike]) -> int:
    """Appends what several sources find, in the order in which it comes; returns how many.

    All sources run at once. While the session has no credit, none is asked for more than the
    one document that it waits with.
    """
    writing, counts = asyncio.Lock(), [0] * len(sources)

    async def drain(number: int, source: AsyncIterable[DocumentLike]) -> None:
        async for document in source:
            async with writing:
                await session.append(document)
            counts[number] += 1

    with single_error():
        async with TaskGroup() as group:
            for number, source in enumerate(sources):
                group.create_task(drain(number, source))
    return sum(counts)


async def update_from(session: Updates, lists: AsyncIterable[Iterable[Document]]) -> int:
    """Sends each new list of a source that refines its results; returns how many.

    A document that was sent before with the same content is named by its id alone.
    """
    sent: dict[str, Content | None] = {}
    count = 0
    async for documents in lists:
        await session.update(by_reference(documents, sent))
        count += 1
    return count


def by_reference(
    documents: Iterable[Document], sent: MutableMapping[str, Content | None]
) -> tuple[Document, ...]:
    """The list with documents sent before named by id alone; `sent` is kept up to date."""
    return tuple(_by_reference(document, sent) for document in documents)


def _by_reference(document: Document, sent: MutableMapping[str, Content | None]) -> Document:
    if not document.id:
        return document
    if document.id in sent and sent[document.id] == document.content:
        return DocumentRef(document.id, document.stays)
    sent[document.id] = document.content
    return document
