"""The router's part of a session's trace: notes what happens, and writes the spans at the end."""

from __future__ import annotations

from collections.abc import Sequence

from router.documents import ContentDocument
from router.metrics import InputMode, InputOp
from router.session_spans import SessionNotes, Tokenized, session_span
from router.timeline import Timeline
from stream2llm.api.call_metadata import Metadata
from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Finished
from stream2llm.api.trace_context import TraceContext
from stream2llm.serving.observability.spans import SpanError
from stream2llm.serving.observability.tracing import Trace


class SessionTrace:
    """Costs next to nothing where the session is not recorded."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._notes = SessionNotes()

    @property
    def context(self) -> TraceContext | None:
        """The session's span, for logs."""
        return self._trace.context

    @property
    def metadata(self) -> Metadata | None:
        """For the RPCs to workers."""
        return None if self._trace.context is None else self._trace.context.metadata()

    def now_s(self) -> float:
        """The present instant, for `tokenized`."""
        return self._trace.now_s()

    def tokenized(
        self, event: InputOp, begin_s: float, num_tokens: int, num_documents: int = 0
    ) -> None:
        """An event's text was tokenized from `begin_s` until now."""
        if self._trace.is_recorded:
            note = Tokenized(event, begin_s, self._trace.now_s(), num_tokens, num_documents)
            self._notes.tokenized.add(note)

    def documents_tokenized(
        self, event: InputOp, begin_s: float, documents: Sequence[ContentDocument]
    ) -> None:
        """The documents of an append or update were tokenized from `begin_s` until now."""
        if self._trace.is_recorded:
            num_tokens = sum(each.num_tokens for each in documents)
            self.tokenized(event, begin_s, num_tokens, len(documents))

    def restarted(self) -> None:
        """The session was placed at another worker."""
        self._notes.restarts += 1

    def finished(self, finished: Finished) -> None:
        """The answer has ended."""
        self._notes.finished = finished

    def end(
        self,
        timeline: Timeline,
        outcome: str,
        session_id: str,
        model: str,
        mode: InputMode,
        error: Stream2LLMError | None,
    ) -> None:
        """The session has ended; call it once."""
        if not self._trace.is_recorded:
            return
        notes = self._notes
        notes.session_id, notes.model, notes.mode = session_id, model, mode
        failed = None if error is None else SpanError(error.reason, error.message)
        now_s = self._trace.now_s()
        self._trace.end(session_span(notes, timeline.instants(), now_s, outcome, failed))
