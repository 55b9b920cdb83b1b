"""The spans of one session at a prefill worker, from the times that it notes. Pure.

    prefill                          from the RPC's begin to its end
      queue *                        new context: arrival until the first step that computes it
      prefill_steps *                consecutive steps, up to a report of progress

Events of `prefill`: splice, seal, offer, first_token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from stream2llm.serving.observability.spans import (
    Attribute,
    Moment,
    Notes,
    SpanError,
    SpanRecord,
    present,
)
from stream2llm.serving.sessions.token_bytes import num_tokens

if TYPE_CHECKING:  # its module writes spans
    from stream2llm.serving.observability.tracing import Trace


@dataclass(frozen=True, slots=True)
class Reported:
    """A report of progress with the steps since the one before it."""

    at_s: float = 0.0
    num_steps: int = 0
    # Begin of the first one; meaningless without steps.
    steps_began_s: float = 0.0
    known_tokens: int = 0
    prefilled_tokens: int = 0
    computed_tokens: int = 0
    reused_tokens: int = 0

    @classmethod
    def of(cls, at_s: float, figures: Mapping[str, Any]) -> Reported:
        """From the figures that `SessionState.progress` makes."""
        return cls(at_s, **{name: figures[name] for name in _FIGURES if name in figures})


_FIGURES = [each.name for each in fields(Reported) if each.name != "at_s"]


@dataclass(slots=True)
class PrefillNotes:
    """Ids, counts and times of a session, for its spans; nothing where it is not recorded."""

    trace: Trace
    session_id: str = ""
    begin_s: float = field(init=False)
    moments: Notes[Moment] = field(default_factory=Notes)
    # One seal and one first token.
    milestones: list[Moment] = field(default_factory=list)
    spans: Notes[SpanRecord] = field(default_factory=Notes)
    # Since when the newest context waits for its first step; None: it has begun.
    waiting_since_s: float | None = None
    # It has its first token: a router that leaves now has what it asked for.
    is_complete: bool = False
    last: Reported = Reported()

    def __post_init__(self) -> None:
        self.begin_s = self.trace.now_s()

    def spliced(self, splice: Any, *, seal: bool) -> None:
        """The engine has been sent a SplicePrefill, or the seal with it."""
        if not self.trace.is_recorded:
            return
        at_s = self.trace.now_s()
        attributes = {
            "stream2llm.revision": splice.revision,
            "stream2llm.keep_tokens": splice.keep_tokens,
            "stream2llm.num_tokens": num_tokens(splice.token_ids),
        }
        if seal:
            self.milestones.append(Moment("seal", at_s, attributes))
        else:
            self.moments.add(Moment("splice", at_s, attributes))
        if self.waiting_since_s is None:
            self.waiting_since_s = at_s

    def reported(self, figures: Mapping[str, Any]) -> None:
        """The engine has reported `SessionState.progress`."""
        if not self.trace.is_recorded:
            return
        now = Reported.of(self.trace.now_s(), figures)
        if now.num_steps:
            if self.waiting_since_s is not None and self.waiting_since_s < now.steps_began_s:
                self.spans.add(SpanRecord("queue", self.waiting_since_s, now.steps_began_s))
            self.spans.add(_steps(self.last, now))
            self.waiting_since_s = None
        self.last = now

    def offered(self, num_tokens: int) -> None:
        """The engine has offered the KV of that many tokens to decode."""
        if self.trace.is_recorded:
            attributes = {"stream2llm.num_tokens": num_tokens}
            self.moments.add(Moment("offer", self.trace.now_s(), attributes))

    def first_token(self, *, is_handed_over: bool) -> None:
        """The engine has sampled the first token."""
        self.is_complete = True
        if self.trace.is_recorded:
            handed_over = {"stream2llm.is_handed_over": is_handed_over}
            self.milestones.append(Moment("first_token", self.trace.now_s(), handed_over))

    def record(self, outcome: str, error: SpanError | None) -> SpanRecord:
        """Returns the spans of a session that ends now."""
        return _span(self, self.trace.now_s(), outcome, error)


def _span(notes: PrefillNotes, end_s: float, outcome: str, error: SpanError | None) -> SpanRecord:
    left_out = notes.moments.num_left_out + notes.spans.num_left_out
    attributes: dict[str, Attribute | None] = {
        "stream2llm.session_id": notes.session_id,
        "stream2llm.outcome": "ok" if notes.is_complete and error is None else outcome,
        "stream2llm.known_tokens": notes.last.known_tokens,
        "stream2llm.computed_tokens": notes.last.computed_tokens,
        "stream2llm.reused_tokens": notes.last.reused_tokens,
        "stream2llm.spans_left_out": left_out or None,
    }
    return SpanRecord(
        "prefill",
        notes.begin_s,
        end_s,
        present(attributes),
        tuple(sorted((*notes.moments.kept, *notes.milestones), key=lambda each: each.at_s)),
        error,
        tuple(_in_order(notes, end_s)),
    )


def _in_order(notes: PrefillNotes, end_s: float) -> Iterator[SpanRecord]:
    yield from notes.spans.kept
    if notes.waiting_since_s is not None:
        yield SpanRecord("queue", notes.waiting_since_s, end_s)


def _steps(before: Reported, now: Reported) -> SpanRecord:
    return SpanRecord(
        "prefill_steps",
        now.steps_began_s,
        now.at_s,
        {
            "stream2llm.num_steps": now.num_steps,
            "stream2llm.computed_tokens": now.computed_tokens - before.computed_tokens,
            "stream2llm.reused_tokens": now.reused_tokens - before.reused_tokens,
            "stream2llm.prefilled_tokens": now.prefilled_tokens,
            "stream2llm.known_tokens": now.known_tokens,
        },
    )
