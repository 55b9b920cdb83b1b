"""What workers make of the times that they note."""

from __future__ import annotations

from typing import Any

import pytest

from decode_worker.fetch_orders import FetchEnd, FetchResult, LocalTokens
from decode_worker.session_spans import DecodeNotes, PrefetchNotes
from prefill_worker.session_spans import PrefillNotes
from prefill_worker.session_state import LostBlocks, SessionState
from router.metrics import InputMode, InputOp
from router.session_spans import Instants, SessionNotes, Tokenized, session_span
from stream2llm.api.v1.worker_pb2 import SplicePrefill
from stream2llm.serving.observability.spans import MAX_NOTES, SpanError, SpanRecord
from stream2llm.serving.observability.tracing import Trace


def spans_of(record: SpanRecord) -> list[tuple[str, float, float]]:
    return [(child.name, child.begin_s, child.end_s) for child in record.children]


class RecordedTrace(Trace):
    """A trace that is recorded, at an instant that the test sets."""

    at_s = 0.5

    @property
    def is_recorded(self) -> bool:
        return True

    def now_s(self) -> float:
        return self.at_s

    def at(self, at_s: float) -> None:
        object.__setattr__(self, "at_s", at_s)


class Prefill:
    """A prefill session's notes, each made at a given instant."""

    def __init__(self) -> None:
        self.trace = RecordedTrace()
        self.notes = PrefillNotes(self.trace, "s")

    def spliced(self, at_s: float, *, seal: bool) -> None:
        self.trace.at(at_s)
        self.notes.spliced(SplicePrefill(), seal=seal)

    def reported(self, at_s: float, num_steps: int, began_s: float, computed: int) -> None:
        self.trace.at(at_s)
        steps = {"num_steps": num_steps, "steps_began_s": began_s}
        tokens = {"known_tokens": 30, "prefilled_tokens": computed, "computed_tokens": computed}
        self.notes.reported(steps | tokens)

    def first_token(self, at_s: float, *, is_handed_over: bool) -> None:
        self.trace.at(at_s)
        self.notes.first_token(is_handed_over=is_handed_over)

    def record(self, at_s: float, outcome: str) -> SpanRecord:
        self.trace.at(at_s)
        return self.notes.record(outcome, None)


class Decode:
    """A decode session's notes, likewise."""

    def __init__(self, **fields: Any) -> None:
        self.trace = RecordedTrace()
        self.notes = DecodeNotes(self.trace, "s", 10, **fields)

    def stepped(self, at_s: float, num_tokens: int, *, is_last: bool) -> None:
        self.trace.at(at_s)
        self.notes.stepped(num_tokens, is_last=is_last)

    def record(self, at_s: float, outcome: str, error: SpanError | None = None) -> SpanRecord:
        self.trace.at(at_s)
        return self.notes.record(outcome, error)


def test_prefill_waits_computes_in_groups_of_steps_and_waits_again() -> None:
    notes = Prefill()
    notes.spliced(1.0, seal=False)
    notes.reported(1.5, 0, 0.0, 0)  # a new revision, nothing computed
    notes.reported(3.0, 2, 2.0, 16)
    notes.reported(4.0, 1, 3.1, 20)
    notes.spliced(5.0, seal=True)
    notes.reported(7.0, 1, 6.0, 30)
    notes.first_token(7.0, is_handed_over=True)
    record = notes.record(9.0, "ok")
    assert spans_of(record) == [
        ("queue", 1.0, 2.0),
        ("prefill_steps", 2.0, 3.0),
        ("prefill_steps", 3.1, 4.0),
        ("queue", 5.0, 6.0),
        ("prefill_steps", 6.0, 7.0),
    ]
    computed = [c.attributes.get("stream2llm.computed_tokens") for c in record.children]
    assert computed == [None, 16, 4, None, 10]
    assert [(m.name, m.at_s) for m in record.moments] == [
        ("splice", 1.0), ("seal", 5.0), ("first_token", 7.0)
    ]  # fmt: skip
    assert record.attributes["stream2llm.computed_tokens"] == 30


def test_a_session_that_ends_while_it_waits_was_in_the_queue_to_its_end() -> None:
    notes = Prefill()
    notes.spliced(1.0, seal=False)
    assert spans_of(notes.record(9.0, "cancelled")) == [("queue", 1.0, 9.0)]


def test_a_long_session_keeps_its_first_steps_its_seal_and_its_first_token() -> None:
    notes = Prefill()
    for number in range(MAX_NOTES + 10):
        notes.spliced(float(number), seal=False)
        notes.reported(number + 0.5, 1, float(number), number)
    notes.spliced(900.0, seal=True)
    notes.first_token(901.0, is_handed_over=False)
    record = notes.record(902.0, "ok")
    assert [moment.name for moment in record.moments[-2:]] == ["seal", "first_token"]
    assert record.attributes["stream2llm.spans_left_out"] == 20


def test_the_scheduler_s_state_counts_the_steps_since_its_last_report() -> None:
    state = SessionState(1, 1, 1, False, LostBlocks(1))
    state.note_step(2.0)
    state.note_step(3.0)
    figures = state.progress(10, 5)
    assert (figures["num_steps"], figures["steps_began_s"]) == (2, 2.0)
    state.mark_reported()
    assert state.progress(10, 5)["num_steps"] == 0
    state.note_step(7.0)
    assert state.progress(10, 5)["steps_began_s"] == 7.0


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        (LocalTokens(4, 8, read_s=3.0), [("transfer", 1.0, 3.0)]),
        (LocalTokens(10, 8), []),  # all of it was here
        (None, [("transfer", 1.0, 9.0)]),
    ],
)
def test_an_answer_s_transfer_ends_when_its_kv_is_read(
    local: LocalTokens | None, expected: list[tuple[str, float, float]]
) -> None:
    notes = Decode(submitted_s=1.0, local=local)
    if local is not None:
        notes.stepped(4.0, 1, is_last=False)
        notes.stepped(5.0, 2, is_last=False)
    record = notes.record(9.0, "ok")
    assert spans_of(record) == expected
    assert [(m.name, m.at_s) for m in record.moments] == ([("first_step", 4.0)] if local else [])
    assert record.attributes["stream2llm.num_tokens"] == (3 if local else 0)


@pytest.mark.parametrize(("is_complete", "outcome"), [(True, "ok"), (False, "cancelled")])
def test_a_router_that_leaves_after_the_last_token_has_cancelled_nothing(
    is_complete: bool, outcome: str
) -> None:
    decode, prefill = Decode(), Prefill()
    decode.stepped(4.0, 1, is_last=is_complete)
    if is_complete:
        prefill.first_token(3.0, is_handed_over=True)
    for record in (decode.record(9.0, "cancelled"), prefill.record(9.0, "cancelled")):
        assert record.attributes["stream2llm.outcome"] == outcome
    lost = decode.record(9.0, "unavailable", SpanError("KV_LOST"))
    assert lost.attributes["stream2llm.outcome"] == "unavailable"


def test_local_tokens_keep_the_instant_of_the_read_on_the_wire() -> None:
    local = LocalTokens(4, 8, read_s=3.5)
    assert LocalTokens.from_wire(local.to_wire()) == local


def test_each_fetch_says_what_became_of_it() -> None:
    trace = RecordedTrace()
    notes = PrefetchNotes(trace, "s")
    trace.at(2.0)
    notes.fetched(1.0, 64, FetchResult(FetchEnd.FETCHED, "", 2, 0.5, 1000))
    trace.at(4.0)
    notes.fetched(3.0, 96, FetchResult(FetchEnd.REFUSED, "busy"))
    record = notes.record("ok", None)
    assert spans_of(record) == [("fetch", 1.0, 2.0), ("fetch", 3.0, 4.0)]
    fetched, refused = (child.attributes for child in record.children)
    assert fetched["stream2llm.num_bytes"] == 2000
    assert (refused["stream2llm.result"], refused["stream2llm.reason"]) == ("refused", "busy")


@pytest.mark.parametrize(
    ("instants", "expected"),
    [
        (Instants(1.0), []),
        (Instants(1.0, 2.0), [("seal", 2.0, 9.0), ("first_token", 2.0, 9.0)]),
        (Instants(1.0, 2.0, 3.0, 4.0), [("seal", 2.0, 3.0), ("first_token", 2.0, 4.0)]),
    ],
)
def test_a_session_that_ends_early_ends_the_phase_it_is_in(
    instants: Instants, expected: list[tuple[str, float, float]]
) -> None:
    record = session_span(SessionNotes(), instants, 9.0, "cancelled", None)
    assert spans_of(record) == expected


def test_a_session_with_many_events_says_how_many_were_left_out() -> None:
    notes = SessionNotes(mode=InputMode.UPDATE)
    for number in range(MAX_NOTES + 2):
        notes.tokenized.add(Tokenized(InputOp.UPDATE, number, number, 1, 1))
    record = session_span(notes, Instants(0.0), 9.0, "ok", None)
    assert len(record.children) == MAX_NOTES
    assert record.attributes["stream2llm.spans_left_out"] == 2
