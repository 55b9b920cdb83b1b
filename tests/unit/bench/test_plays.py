"""Plays: what is sent, when, and how much KV it needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.baselines.cells import HEAVY, NON_STREAMING, Cell, Turn
from experiments.baselines.memory import (
    MAX_MODEL_LEN,
    max_prompt_tokens,
    num_kv_blocks,
)
from experiments.baselines.scaling import at_paper_speed
from experiments.baselines.schedule import plays_of
from experiments.plays import Play, applied, play_of, plays, with_gaps
from stream2llm.simulator.work import peak_tokens, tasks
from stream2llm.workload.traces.format import Content, Document, Event, Scale, Session

pytestmark = pytest.mark.unit
PREFIX = [1, 2, 3]


def a_session(
    *events: Event, arrival_s: float = 0.0, sizes: dict[str, int] | None = None
) -> Session:
    documents = (sizes or {"a": 10, "b": 20, "c": 30}).items()
    return Session(
        id="q0",
        arrival_s=arrival_s,
        prefix=Content(tokens=len(PREFIX)),
        suffix=Content(tokens=4),
        documents=tuple(Document(name, tokens=size) for name, size in documents),
        events=(*events, Event(events[-1].at_s, "seal")),
    )


def a_play(*events: Event, arrival_s: float = 0.0) -> Play:
    return play_of(a_session(*events, arrival_s=arrival_s), PREFIX, np.random.default_rng(1))


def context_of(play: Play, *names: str) -> list[int]:
    return PREFIX + [token for name in names for token in play.documents[name]]


def test_changes_of_appends_lead_to_all_documents_in_order() -> None:
    play = a_play(Event(1.0, "append", ("a",)), Event(2.0, "append", ("b", "c")))
    context: list[int] = []
    for change in play.changes:
        context = applied(context, change)
    assert context == context_of(play, "a", "b", "c")
    assert [change.at_s for change in play.changes] == [0.0, 1.0, 2.0]
    assert play.num_prompt_tokens == 3 + 60 + 4


def test_an_update_keeps_what_both_lists_begin_with() -> None:
    play = a_play(Event(1.0, "update", ("a", "b")), Event(2.0, "update", ("a", "c", "b")))
    _, first, second = play.changes
    assert second.keep_tokens == 3 + 10
    assert applied(applied(PREFIX, first), second) == context_of(play, "a", "c", "b")


def test_an_update_that_only_cuts_the_list_sends_nothing() -> None:
    play = a_play(Event(1.0, "update", ("a", "b")), Event(2.0, "update", ("a",)))
    assert play.changes[-1].token_ids == []
    assert play.num_prompt_tokens == 3 + 10 + 4
    assert play.num_longest_tokens == 3 + 30, "it was longer before"


def test_the_question_counts_where_the_context_is_longest_at_the_end() -> None:
    play = a_play(Event(1.0, "append", ("a",)), Event(2.0, "append", ("b",)))
    assert play.num_longest_tokens == play.num_prompt_tokens == 3 + 30 + 4


def test_gaps_grow_and_the_first_chunk_comes_when_it_did() -> None:
    session = with_gaps(a_session(Event(2.0, "append", ("a",)), Event(2.5, "append", ("b",))), 10.0)
    assert [event.at_s for event in session.events] == [2.0, 7.0, 7.0]


def test_a_key_decides_the_token_ids_and_nothing_else() -> None:
    one, other = (
        plays("anns", 5, 1, key=key, rate=2.0, scale=Scale(tokens=1 / 8)) for key in ("x", "y")
    )
    assert [play.session for play in one] == [play.session for play in other]
    assert one[0].prefix_ids == one[1].prefix_ids != other[0].prefix_ids
    assert one[0].documents != other[0].documents
    again = plays("anns", 5, 1, key="x", rate=2.0, scale=Scale(tokens=1 / 8))
    assert again == one


def peak_open_tokens(played: list[Play]) -> int:
    named = (replace(play.session, id=str(number)) for number, play in enumerate(played))
    return peak_tokens(tasks(named))


def test_open_tokens_are_those_known_before_the_seal() -> None:
    first = a_play(Event(1.0, "append", ("c",)), Event(4.0, "append", ("a",)))
    second = a_play(Event(1.0, "append", ("b",)), Event(9.0, "append", ("a",)), arrival_s=2.0)
    # At 4 s: 3 + 30 + 10 of the first, 3 + 20 of the second.
    assert peak_open_tokens([first, second]) == 43 + 23


def test_a_session_counts_no_more_after_its_seal() -> None:
    first = a_play(Event(1.0, "append", ("c",)))
    second = a_play(Event(1.0, "append", ("a",)), arrival_s=5.0)
    assert peak_open_tokens([first, second]) == 33


def test_scarce_memory_is_a_third_of_what_is_open_but_holds_the_longest_prompt() -> None:
    play = a_play(Event(1.0, "append", ("a", "b", "c")))
    pressed = [replace(play, session=replace(play.session, id=str(n))) for n in range(100)]
    assert num_kv_blocks(pressed, 67, scarce=False) == -(-6300 // 32) + 1
    assert num_kv_blocks(pressed, 67, scarce=True) == -(-2100 // 32) + 1
    assert num_kv_blocks(pressed[:1], 67, scarce=True) == 3 + 1 + 1


def test_an_engine_is_told_no_longer_context_than_its_memory_holds() -> None:
    assert max_prompt_tokens(11, 16_384) == 320
    assert max_prompt_tokens(1000, 16_384) == 16_384


def test_no_system_is_sent_a_list_that_its_model_cannot_take() -> None:
    """The third repetition has one: longer than 16,384 tokens until its last update."""
    turn = Turn(Cell("engine", "anns", HEAVY), NON_STREAMING, 3)
    found = plays_of(turn, at_paper_speed("anns"), 134, 1.0)
    assert len(found) == 133
    assert all(play.num_longest_tokens < MAX_MODEL_LEN for play in found)
