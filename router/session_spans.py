"""The spans of one session at the router, from the times that were noted. Pure.

    session                          from the open event to the end
      tokenize *                     one event's documents, template or suffix
      seal                           the seal: arrival until prefill has been sent it
      first_token                    from the seal's arrival to prefill's token
      transfer                       from there to decode's first tokens, as the client sees it
      decode                         from there to the end of the answer

A phase that is under way when the session ends ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from router.metrics import InputMode, InputOp
from stream2llm.api.events import Finished
from stream2llm.serving.observability.spans import Attribute, Notes, SpanError, SpanRecord, present


@dataclass(frozen=True, slots=True)
class Instants:
    """When what happened, in seconds of the machine's monotonic clock; None: not yet."""

    opened_s: float
    # The seal event has arrived; prefill has been sent it.
    sealed_s: float | None = None
    seal_sent_s: float | None = None
    first_token_s: float | None = None
    # Decode's first tokens.
    second_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The tokenizing of one event."""

    event: InputOp
    begin_s: float
    end_s: float
    num_tokens: int
    num_documents: int


@dataclass(slots=True)
class SessionNotes:
    """Ids and counts of a traced session, for its spans; Instants has the times."""

    session_id: str = ""
    model: str = ""
    mode: InputMode = InputMode.ONESHOT
    restarts: int = 0
    tokenized: Notes[Tokenized] = field(default_factory=Notes)
    # None without an answer that has ended.
    finished: Finished | None = None


def session_span(
    notes: SessionNotes, instants: Instants, end_s: float, outcome: str, error: SpanError | None
) -> SpanRecord:
    """Returns the session's span with those within it; `outcome` is that of the metrics."""
    return SpanRecord(
        "session",
        instants.opened_s,
        end_s,
        present(_attributes(notes, outcome)),
        error=error,
        children=(*map(_tokenize, notes.tokenized.kept), *_phases(instants, end_s)),
    )


def _attributes(notes: SessionNotes, outcome: str) -> dict[str, Attribute | None]:
    attributes: dict[str, Attribute | None] = {
        "stream2llm.session_id": notes.session_id,
        "stream2llm.input_mode": str(notes.mode),
        "stream2llm.outcome": outcome,
        "stream2llm.restarts": notes.restarts or None,
        "stream2llm.spans_left_out": notes.tokenized.num_left_out or None,
        "gen_ai.request.model": notes.model,
    }
    return attributes if notes.finished is None else {**attributes, **_answer(notes.finished)}


def _answer(finished: Finished) -> dict[str, Attribute]:
    usage = finished.usage
    return {
        "stream2llm.finish_reason": str(finished.reason),
        "stream2llm.uncomputed_at_seal_tokens": usage.uncomputed_at_seal_tokens,
        "stream2llm.prefetched_tokens": usage.prefetched_tokens,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }


def _tokenize(note: Tokenized) -> SpanRecord:
    attributes: dict[str, Attribute] = {
        "stream2llm.event": str(note.event),
        "stream2llm.num_tokens": note.num_tokens,
        "stream2llm.num_documents": note.num_documents,
    }
    return SpanRecord("tokenize", note.begin_s, note.end_s, attributes)


def _phases(at: Instants, end_s: float) -> Iterator[SpanRecord]:
    if at.sealed_s is not None:
        yield SpanRecord("seal", at.sealed_s, _or(at.seal_sent_s, end_s))
        yield SpanRecord("first_token", at.sealed_s, _or(at.first_token_s, end_s))
    if at.first_token_s is not None and at.second_token_s is not None:
        yield SpanRecord("transfer", at.first_token_s, at.second_token_s)
        yield SpanRecord("decode", at.second_token_s, end_s)


def _or(instant_s: float | None, end_s: float) -> float:
    return end_s if instant_s is None else instant_s
