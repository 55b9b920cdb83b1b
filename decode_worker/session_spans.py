"""The spans of one session at a decode worker, from the times that were noted. Pure.

    prefetch                         the RPC for KV before the seal
      fetch *                        one offer: arrival until the engine has ended the fetch
    decode                           the RPC for the answer
      transfer                       reading the KV that is not here yet

Event of `decode`: first_step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from decode_worker.fetch_orders import FetchResult, LocalTokens
from stream2llm.serving.spans import Attribute, Moment, Notes, SpanError, SpanRecord, present


@dataclass(slots=True)
class PrefetchNotes:
    """Ids, counts and times of a traced KV prefetch, for its spans."""

    session_id: str = ""
    fetches: Notes[SpanRecord] = field(default_factory=Notes)

    def fetched(self, begin_s: float, end_s: float, num_tokens: int, result: FetchResult) -> None:
        """A fetch has ended."""
        attributes: dict[str, Attribute | None] = {
            "stream2llm.result": str(result.end),
            "stream2llm.reason": result.reason or None,
            "stream2llm.num_tokens": num_tokens,
            "stream2llm.num_blocks": result.num_blocks,
            "stream2llm.num_bytes": result.num_blocks * result.bytes_per_block,
            "stream2llm.read_seconds": result.seconds,
        }
        self.fetches.add(SpanRecord("fetch", begin_s, end_s, present(attributes)))


def prefetch_span(
    notes: PrefetchNotes, begin_s: float, end_s: float, error: SpanError | None
) -> SpanRecord:
    """Returns the span of the RPC with those within it.

    It has no outcome: the router ends the RPC when it needs no more of it.
    """
    attributes: dict[str, Attribute | None] = {
        "stream2llm.fetch_session_id": notes.session_id,
        "stream2llm.spans_left_out": notes.fetches.num_left_out or None,
    }
    return SpanRecord(
        "prefetch",
        begin_s,
        end_s,
        present(attributes),
        error=error,
        children=tuple(notes.fetches.kept),
    )


@dataclass(slots=True)
class DecodeNotes:
    """Ids, counts and times of a traced answer, for its spans."""

    session_id: str
    num_prompt_tokens: int
    # When the engine had been sent the request.
    submitted_s: float | None = None
    local: LocalTokens | None = None
    first_step_s: float | None = None
    num_steps: int = 0
    num_tokens: int = 0
    # The last step has been made: a router that leaves now has its answer.
    is_complete: bool = False

    def stepped(self, at_s: float, num_tokens: int, *, is_last: bool) -> None:
        """The engine has made tokens."""
        self.is_complete = is_last
        if self.first_step_s is None:
            self.first_step_s = at_s
        self.num_steps += 1
        self.num_tokens += num_tokens


def decode_span(
    notes: DecodeNotes, begin_s: float, end_s: float, outcome: str, error: SpanError | None
) -> SpanRecord:
    """Returns the span of the RPC with those within it."""
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
        begin_s,
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
