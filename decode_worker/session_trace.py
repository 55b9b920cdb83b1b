"""A decode worker's parts of a session's trace: notes what happens, for the spans at the end."""

from __future__ import annotations

from decode_worker.fetch_orders import FetchResult, LocalTokens
from decode_worker.session_spans import DecodeNotes, PrefetchNotes, decode_span, prefetch_span
from stream2llm.serving.spans import SpanError, SpanRecord
from stream2llm.serving.tracing import NO_TRACE, Trace


class PrefetchTrace:
    """One PrefetchKv RPC; does nothing where it is not recorded."""

    def __init__(self, trace: Trace = NO_TRACE) -> None:
        self.trace = trace
        self._notes = PrefetchNotes()
        self._begin_s = trace.now_s()

    def opened(self, session_id: str) -> None:
        """The router has named the session."""
        self._notes.session_id = session_id

    def fetched(self, begin_s: float, num_tokens: int, result: FetchResult) -> None:
        """A fetch that began at `begin_s` has ended."""
        if self.trace.is_recorded:
            self._notes.fetched(begin_s, self.trace.now_s(), num_tokens, result)

    def record(self, outcome: str, error: SpanError | None) -> SpanRecord:
        """Returns the spans of an RPC that ends now."""
        return prefetch_span(self._notes, self._begin_s, self.trace.now_s(), error)


class DecodeTrace:
    """One Decode RPC; does nothing where it is not recorded."""

    def __init__(self, trace: Trace, session_id: str, num_prompt_tokens: int) -> None:
        self.trace = trace
        self._notes = DecodeNotes(session_id, num_prompt_tokens)
        self._begin_s = trace.now_s()

    def submitted(self) -> None:
        """The engine has been sent the request."""
        if self.trace.is_recorded:
            self._notes.submitted_s = self.trace.now_s()

    def local(self, local: LocalTokens) -> None:
        """The engine has reported which part of the prompt was here."""
        self._notes.local = local

    def stepped(self, num_tokens: int, *, is_last: bool) -> None:
        """The engine has made tokens."""
        if self.trace.is_recorded:
            self._notes.stepped(self.trace.now_s(), num_tokens, is_last=is_last)

    def record(self, outcome: str, error: SpanError | None) -> SpanRecord:
        """Returns the spans of an RPC that ends now."""
        return decode_span(self._notes, self._begin_s, self.trace.now_s(), outcome, error)
