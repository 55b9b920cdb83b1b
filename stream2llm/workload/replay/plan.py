"""What will be sent, and when: made before the run, so that nothing is made during it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from stream2llm.api.requests import Content, Document
from stream2llm.client.inputs import DocumentRef
from stream2llm.workload.traces import format as trace
from stream2llm.workload.traces.text import Filler, text_of

# All sessions of a trace have the same instruction.
_PREFIX_KEY: Final = "prefix"


@dataclass(frozen=True, slots=True)
class Step:
    """An append, or an update."""

    # After the beginning of the run.
    due_s: float
    is_update: bool
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class PlannedSession:
    """One session to play, with texts or token ids; times in seconds after the beginning of the run."""

    session_id: str
    due_s: float
    prefix: Content
    steps: tuple[Step, ...]
    seal_due_s: float
    # Sent with the seal.
    suffix: Content
    # Recorded length of the answer; None leaves it to the run.
    output_tokens: int | None = None


class Planner:
    """Makes sessions of trace lines; equal arguments make equal plans.

    `load_scale` multiplies the sessions a second and leaves the times within a
    session. `text_seed` decides the filler that stands for token counts: with
    another one a second run finds nothing of the first in prefix caches.
    """

    def __init__(
        self, filler: Filler, *, load_scale: float = 1.0, text_seed: int | str = 0
    ) -> None:
        self._filler = filler
        self._load_scale = load_scale
        self._text_seed = text_seed
        # Shared documents and the instruction are held once, not once a session.
        self._common: dict[str, Content] = {}

    def plan(
        self, sessions: Iterable[trace.Session], shared: Mapping[str, trace.Document]
    ) -> Iterator[PlannedSession]:
        """Each session in turn; `shared` may grow while the trace is read."""
        for session in sessions:
            yield self.planned(session, shared)

    def planned(
        self, session: trace.Session, shared: Mapping[str, trace.Document]
    ) -> PlannedSession:
        """One session."""
        due_s = session.arrival_s / self._load_scale
        seal = session.events[-1]
        return PlannedSession(
            session_id=session.id,
            due_s=due_s,
            prefix=self._common_text(session.prefix, _PREFIX_KEY),
            steps=tuple(self._steps(session, due_s, self._documents(session, shared))),
            seal_due_s=due_s + seal.at_s,
            suffix=self._text(session.suffix, f"{session.id}/suffix"),
            output_tokens=session.output_tokens,
        )

    def _documents(
        self, session: trace.Session, shared: Mapping[str, trace.Document]
    ) -> dict[str, Document]:
        own = {document.id for document in session.documents}
        return {
            name: Document(self._document_text(document, session.id, own), name)
            for name, document in session.document_table(shared).items()
        }

    def _document_text(self, document: trace.Document, session_id: str, own: set[str]) -> Content:
        if document.id in own:
            return self._text(document, f"{session_id}/{document.id}")
        return self._common_text(document, f"shared/{document.id}")

    @staticmethod
    def _steps(
        session: trace.Session, due_s: float, documents: Mapping[str, Document]
    ) -> Iterator[Step]:
        sent: set[str] = set()
        for event in session.events[:-1]:
            is_update = event.kind == "update"
            # Only an update may name what was sent before.
            known = sent if is_update else set()
            listed = tuple(
                DocumentRef(name) if name in known else documents[name] for name in event.documents
            )
            sent.update(event.documents)
            yield Step(due_s + event.at_s, is_update, listed)

    def _common_text(self, content: trace.Content | trace.Document, key: str) -> Content:
        # By what it is, too: nothing forbids a trace two different instructions.
        identity = f"{key}/{content.text or content.tokens}"
        if identity not in self._common:
            self._common[identity] = self._text(content, key)
        return self._common[identity]

    def _text(self, content: trace.Content | trace.Document, key: str) -> Content:
        return text_of(content, self._filler, f"{self._text_seed}/{key}")
