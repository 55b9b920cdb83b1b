"""Invariants of the responses that a connection remembers, and of what a lane sends to its session.

Responses:

1. A response that can be continued has its own line of input and answers, whatever else came.
2. Continuing from a response forgets those behind it in the lane, and no other.
3. A fork leaves the other lane as it is.
4. A request that is refused, or not committed, changes nothing.
5. What is remembered stays within its limits.

Documents:

1. The session's documents are the wanted sequence, whatever came before.
2. A content is sent once, but for the kept part of the one piece that a change cuts.
3. What stays valid is the longest common prefix, and a sequence that only grows is appended.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm.api.errors import InvalidRequestError, OverloadedError
from stream2llm.api.requests import ChatMessage
from stream2llm.gateway.lanes.conversation import Given, SlotDocument
from stream2llm.gateway.lanes.pieces import Sent, change_to
from stream2llm.gateway.lanes.state import Kind, LaneLimits, Lanes, Step
from stream2llm.serving.sessions.prefix import as_tokens

LIMITS = LaneLimits(max_lanes=3, max_responses=4, max_chars=120)
# (lane, which of all responses so far to continue, whether it is answered)
REQUEST = st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, 30), st.booleans())


@dataclass
class Model:
    """The same rules in plain lists."""

    lines: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def lane_of(self, response_id: str) -> str | None:
        return next((name for name, line in self.lines.items() if response_id in line), None)

    def take(self, lane: str, previous: str | None, new_id: str, added: list[str]) -> Kind:
        owner = None if previous is None else self.lane_of(previous)
        line = self.lines.get(lane, [])
        if previous is None or owner != lane:
            kind, kept = (Kind.OPEN if previous is None else Kind.FORK), []
        else:
            kept = line[: line.index(previous) + 1]
            kind = Kind.APPEND if kept == line else Kind.UPDATE
        before = [] if previous is None else self.texts[previous]
        self.lines[lane] = [*kept, new_id][-LIMITS.max_responses :]
        self.texts[new_id] = before + added
        return kind


def taken(
    lanes: Lanes, lane: str, previous: str | None, given: Given
) -> Step | OverloadedError | InvalidRequestError:
    try:
        return lanes.step(lane, previous, given)
    except (OverloadedError, InvalidRequestError) as error:
        return error


def turn(text: str) -> Given:
    return Given((ChatMessage("user", text),))


@given(st.lists(REQUEST, max_size=30))
def test_lanes_do_what_their_model_does(requests: list[tuple[str, int | None, bool]]) -> None:
    lanes, model = Lanes(LIMITS), Model()
    ids: list[str] = []
    for number, (lane, which, is_answered) in enumerate(requests):
        previous = ids[which % len(ids)] if which is not None and ids else None
        text, answer = f"t{number}", f"a{number}" if is_answered else None
        before = lanes
        step = taken(lanes, lane, previous, turn(text))
        assert lanes == before
        if isinstance(step, OverloadedError):
            begins = previous is None or model.lane_of(previous) != lane
            freed = lanes.lines[lane].num_chars if begins and lane in lanes.lines else 0
            is_full = lanes.num_chars - freed + len(text) > LIMITS.max_chars
            assert is_full or (lane not in lanes.lines and len(lanes.lines) == LIMITS.max_lanes)
            continue
        if isinstance(step, InvalidRequestError):
            assert step.reason == "PREVIOUS_RESPONSE_NOT_FOUND"
            assert previous is not None
            assert model.lane_of(previous) is None
            continue
        ids.append(f"r{number}")
        turns = None if answer is None else [ChatMessage("assistant", answer)]
        lanes = lanes.committed(step, ids[-1], turns)
        added = [text] if answer is None else [text, answer]
        assert step.kind is model.take(lane, previous, ids[-1], added)
        assert {n: [r.id for r in line.responses] for n, line in lanes.lines.items()} == model.lines
        for line in lanes.lines.values():
            for response in line.responses:
                texts = [said.content for said in response.conversation.turns]
                assert texts == model.texts[response.id]
                assert response.num_chars <= sum(map(len, texts))
            # What the newest response says is counted, by it or by those before it.
            assert line.num_chars >= sum(map(len, model.texts[line.responses[-1].id]))
    # An answer may be longer than what was left.
    assert lanes.num_chars <= LIMITS.max_chars + sum(len(f"a{n}") for n in range(len(requests)))
    for line in lanes.lines.values():
        assert len(line.responses) <= LIMITS.max_responses


def documents(*given: tuple[str, str | None]) -> Given:
    return Given(documents=tuple(SlotDocument(name, text) for name, text in given))


def test_documents_are_named_where_they_were_sent() -> None:
    lanes = Lanes()
    lanes = lanes.committed(lanes.step("a", None, documents(("d", "text"))), "r1", None)
    lanes = lanes.committed(lanes.step("b", "r1", turn("fork")), "r2", None)
    for lane, previous in (("a", "r1"), ("b", "r2"), ("c", "r1")):
        step = lanes.step(lane, previous, documents(("d", None)))
        assert step.conversation.documents[-1] == SlotDocument("d", "text")
    with pytest.raises(InvalidRequestError, match="has not been sent"):
        lanes.step("a", None, documents(("d", None)))


def test_a_lane_that_begins_anew_makes_room() -> None:
    lanes = Lanes(LaneLimits(max_chars=10))
    lanes = lanes.committed(lanes.step("a", None, documents(("d", "1234"))), "r1", None)
    with pytest.raises(OverloadedError):
        lanes.step("a", "r1", turn("12345"))
    lanes.step("a", None, turn("1234567890"))


def test_a_stored_response_begins_a_line_with_all_that_it_has() -> None:
    origin = Lanes()
    origin = origin.committed(origin.step("a", None, documents(("d", "text"))), "r1", None)
    stored = origin.find("r1")
    lanes = Lanes()
    step = lanes.step("b", "r1", documents(("d", None)), stored)
    assert step.kind is Kind.FORK
    lanes = lanes.committed(step, "r2", None)
    assert [each.id for each in lanes.lines["b"].responses] == ["r2"]
    assert lanes.num_chars >= len("text")
    with pytest.raises(InvalidRequestError):
        lanes.step("b", "r1", turn("again"))


# Few different tokens, so that common prefixes end within parts too.
PARTS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=6)


class Router:
    """The documents of a session, by the rules for its events."""

    def __init__(self) -> None:
        self.documents: list[list[int]] = []
        self.by_id: dict[str, list[int]] = {}
        self.num_sent = 0

    def take(self, change: object) -> None:
        listed = []
        for document in change.documents:  # type: ignore[attr-defined]
            if document.content is None:
                assert change.is_update  # type: ignore[attr-defined]
                listed.append(self.by_id[document.id])
                continue
            assert document.id not in self.by_id, "sent before"
            self.by_id[document.id] = document.content
            self.num_sent += len(document.content)
            listed.append(document.content)
        kept = [] if change.is_update else self.documents  # type: ignore[attr-defined]
        self.documents = kept + listed

    @property
    def sequence(self) -> list[int]:
        return [token for document in self.documents for token in document]


def common(old: list[int], new: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), -1)


@given(st.lists(PARTS, max_size=8))
def test_the_session_has_the_wanted_sequence(wanted: list[list[list[int]]]) -> None:
    router, sent = Router(), Sent()
    for parts in wanted:
        old, before = router.sequence, router.num_sent
        new = [token for part in parts for token in part]
        change = change_to(sent, [as_tokens(part) for part in parts])
        router.take(change)
        sent = change.after
        assert router.sequence == new == sent.sequence.tolist()
        differs = common(old, new)
        num_common = min(len(old), len(new)) if differs < 0 else differs
        assert change.num_kept == num_common
        assert change.num_invalidated == len(old) - num_common
        longest_piece = max((len(piece) for piece in router.by_id.values()), default=0)
        assert router.num_sent - before <= len(new) - num_common + longest_piece


@given(PARTS, st.lists(st.integers(3, 9), min_size=1, max_size=6))
def test_a_sequence_that_grows_is_appended(parts: list[list[int]], more: list[int]) -> None:
    old = [as_tokens(part) for part in parts]
    sent = change_to(Sent(), old).after
    change = change_to(sent, [*old, as_tokens(more)])
    assert not change.is_update
    assert [document.content for document in change.documents] == [more]
    assert change_to(change.after, [*old, as_tokens(more)]).is_empty
