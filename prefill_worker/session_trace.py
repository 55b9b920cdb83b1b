"""A prefill worker's part of a session's trace: notes what happens, for the spans at the end."""

from __future__ import annotations

from typing import Any

from prefill_worker.session_spans import PrefillNotes, Reported, prefill_span
from stream2llm.serving.spans import SpanError, SpanRecord
from stream2llm.serving.tracing import NO_TRACE, Trace


class SessionTrace:
    """Does nothing where the session is not recorded."""

    def __init__(self, trace: Trace = NO_TRACE) -> None:
        self.trace = trace
        self._notes = PrefillNotes()
        self._begin_s = trace.now_s()

    def opened(self, session_id: str) -> None:
        """The router has opened the session."""
        self._notes.session_id = session_id

    def spliced(self, splice: Any, *, seal: bool) -> None:
        """The engine has been sent a SplicePrefill, or the seal with it."""
        if self.trace.is_recorded:
            attributes = {
                "stream2llm.revision": splice.revision,
                "stream2llm.keep_tokens": splice.keep_tokens,
                "stream2llm.num_tokens": len(splice.token_ids),
            }
            self._notes.spliced(self.trace.now_s(), seal=seal, attributes=attributes)

    def reported(self, figures: dict[str, Any]) -> None:
        """The engine has reported `SessionState.progress`."""
        if self.trace.is_recorded:
            self._notes.reported(Reported.of(self.trace.now_s(), figures))

    def offered(self, num_tokens: int) -> None:
        """The engine has offered the KV of that many tokens to decode."""
        if self.trace.is_recorded:
            self._notes.offered(self.trace.now_s(), num_tokens)

    def first_token(self, *, is_handed_over: bool) -> None:
        """The engine has sampled the first token."""
        if self.trace.is_recorded:
            self._notes.first_token(self.trace.now_s(), is_handed_over=is_handed_over)

    def record(self, outcome: str, error: SpanError | None) -> SpanRecord:
        """Returns the spans of a session that ends now."""
        return prefill_span(self._notes, self._begin_s, self.trace.now_s(), outcome, error)
