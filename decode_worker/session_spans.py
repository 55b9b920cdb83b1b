"""The spans of one session at a decode worker, from the times that it notes. Pure.

    prefetch                         the RPC for KV before the seal
      fetch *                        one offer: arrival until the engine has ended the fetch
    decode                           the RPC for the answer
      transfer                       reading the KV that is not here yet

Event of `decode`: first_step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decode_worker.fetch_orders import FetchResult, LocalTokens
from stream2llm.serving.observability.spans import (
    Attribute,
    Moment,
    Notes,
    SpanError,
    SpanRecord,
    present,
)

if TYPE_CHECKING:  # its module writes spans
    from stream2llm.serving.observability.tracing import Trace


@dataclass(slots=True)
class PrefetchNotes:
    """Ids, counts and times of a PrefetchKv RPC; nothing where it is not recorded."""

    trace: Trace
    session_id: str = ""
    begin_s: float = field(init=False)
    fetches: Notes[SpanRecord] = field(default_factory=Notes)

    def __post_init__(self) -> None:
        self.begin_s = self.trace.now_s()

    def fetched(self, begin_s: float, num_tokens: int, result: FetchResult) -> None:
        """A fetch that began at `begin_s` has ended."""
        if not self.trace.is_recorded:
            return
        attributes: dict[str, Attribute | None] = {
            "stream2llm.result": str(result.end),
            "stream2llm.reason": result.reason or None,
            "stream2llm.num_tokens": num_tokens,
            "stream2llm.num_blocks": result.num_blocks,
            "stream2llm.num_bytes": result.num_blocks * result.bytes_per_block,
            "stream2llm.read_seconds": result.seconds,
        }
        self.fetches.add(SpanRecord("fetch", begin_s, self.trace.now_s(), present(attributes)))

    def record(self, _outcome: str, error: SpanError | None) -> SpanRecord:
        """Returns the spans of an RPC that ends now.

        It has no outcome: the router ends the RPC when it needs no more of it.
        """
        attributes: dict[str, Attribute | None] = {
            "stream2llm.fetch_session_id": self.session_id,
            "stream2llm.spans_left_out": self.fetches.num_left_out or None,
        }
        return SpanRecord(
            "prefetch",
            self.begin_s,
            self.trace.now_s(),
            present(attributes),
            error=error,
            children=tuple(self.fetches.kept),
        )


@dataclass(slots=True)
class DecodeNotes:
    """Ids, counts and times of a Decode RPC; nothing where it is not recorded."""

    trace: Trace
    session_id: str
    num_prompt_tokens: int
    begin_s: float = field(init=False)
    # When the engine had been sent the request.
    submitted_s: float | None = None
    local: LocalTokens | None = None
    first_step_s: float | None = None
    num_steps: int = 0
    num_tokens: int = 0
    # The last step has been made: a router that leaves now has its answer.
    is_complete: bool = False

    def __post_init__(self) -> None:
        self.begin_s = self.trace.now_s()

    def submitted(self) -> None:
        """The engine has been sent the request."""
        if self.trace.is_recorded:
            self.submitted_s = self.trace.now_s()

    def stepped(self, num_tokens: int, *, is_last: bool) -> None:
        """The engine has made tokens."""
        self.is_complete = is_last
        if not self.trace.is_recorded:
            return
        if self.first_step_s is None:
            self.first_step_s = self.trace.now_s()
        self.num_steps += 1
        self.num_tokens += num_tokens

    def record(self, outcome: str, error: SpanError | None) -> SpanRecord:
        """Returns the spans of an RPC that ends now."""
        return _span(self, self.trace.now_s(), outcome, error)


def _span(notes: DecodeNotes, end_s: float, outcome: str, error: SpanError | None) -> SpanRecord:
    local = notes.local
    attributes: dict[str, Attribute | None] = {
        "stream2llm.session_id": notes.session_id,
        "stream2llm.outcome": "ok" if notes.is_complete and error is None else outcome,
        "stream2llm.prompt_tokens": notes.num_prompt_tokens,
        "stream2llm.local_tokens": None if local is None else local.num_tokens,
        "stream2llm.num_steps": notes.num_steps,
        "stream2llm.num_tokens": notes.num_tokens,
    }
    first = notes.first_step_s
    return SpanRecord(
        "decode",
        notes.begin_s,
        end_s,
        present(attributes),
        () if first is None else (Moment("first_step", first),),
        error,
        tuple(_transfer(notes, end_s)),
    )


def _transfer(notes: DecodeNotes, end_s: float) -> Iterator[SpanRecord]:
    if notes.submitted_s is None:
        return
    if notes.local is None:  # it ended before its KV was here
        yield SpanRecord("transfer", notes.submitted_s, end_s)
    elif notes.local.read_s:
        num_tokens = notes.num_prompt_tokens - notes.local.num_tokens
        attributes = {"stream2llm.num_tokens": num_tokens}
        yield SpanRecord("transfer", notes.submitted_s, notes.local.read_s, attributes)
