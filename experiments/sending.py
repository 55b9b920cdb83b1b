"""Sends a play's events through the public client."""

from __future__ import annotations

from experiments.plays import Play
from stream2llm.client import AsyncSession, Document, DocumentRef
from stream2llm.workload.traces.format import Event


class Sender:
    """One play on one session; a document's tokens are sent once, then it is named."""

    def __init__(self, session: AsyncSession, play: Play) -> None:
        self._session = session
        self._play = play
        self._sent: set[str] = set()

    async def send(self, event: Event) -> None:
        """An append or an update."""
        documents = [self._document(each) for each in event.documents]
        if event.kind == "append":
            await self._session.append(*documents)
        else:
            await self._session.update(documents)

    def _document(self, name: str) -> Document:
        if name in self._sent:
            return DocumentRef(name)
        self._sent.add(name)
        return Document(self._play.documents[name], name)
