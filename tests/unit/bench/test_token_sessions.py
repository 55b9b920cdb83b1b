"""Sessions of token ids: what is sent, when, and how much KV it needs."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

from experiments.baselines.cells import HEAVY, NON_STREAMING, Cell, Turn
from experiments.baselines.scaling import at_paper_speed
from experiments.baselines.schedule import (
    MAX_MODEL_LEN,
    max_prompt_tokens,
    num_kv_blocks,
    sessions_of,
)
from experiments.token_sessions import (
    TimedSplice,
    generated,
    longest_tokens,
    prompt_ids,
    splices,
    submissions,
    task_of,
    with_token_ids,
)
from stream2llm.simulator.work import tasks
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.traces.format import Content, Document, Event, Scale, Session


def a_session(*events: Event, arrival_s: float = 0.0) -> Session:
    documents = {"a": 10, "b": 20, "c": 30, "d": 40}.items()
    return Session(
        id="q0",
        arrival_s=arrival_s,
        prefix=Content(tokens=3),
        suffix=Content(tokens=4),
        documents=tuple(Document(name, tokens=size) for name, size in documents),
        events=(*events, Event(events[-1].at_s, "seal")),
    )


def a_session_of_tokens(*events: Event, arrival_s: float = 0.0) -> PlannedSession:
    return with_token_ids([a_session(*events, arrival_s=arrival_s)], "k")[0]


def test_changes_of_appends_lead_to_all_documents_in_order() -> None:
    session = a_session_of_tokens(Event(1.0, "append", ("a",)), Event(2.0, "append", ("b", "c")))
    one, other = session.steps
    documents = [each.content for each in (*one.documents, *other.documents)]
    assert prompt_ids(session) == [*session.prefix, *chain(*documents), *session.suffix]
    assert [change.due_s for change in splices(session)] == [0.0, 1.0, 2.0, 2.0]
    assert splices(session)[-1].num_tokens == 3 + 60 + 4


def test_an_update_keeps_what_both_lists_begin_with() -> None:
    session = a_session_of_tokens(
        Event(1.0, "update", ("a", "b")), Event(2.0, "update", ("a", "c", "b"))
    )
    _, first, second, _ = splices(session)
    assert second.keep_tokens == 3 + 10
    # b moved and is computed again, although it is sent once.
    assert first.token_ids[10:] == second.token_ids[30:]
    assert [each.content is None for each in session.steps[1].documents] == [True, False, True]


def test_an_update_that_only_cuts_the_list_sends_nothing() -> None:
    session = a_session_of_tokens(Event(1.0, "update", ("a", "b")), Event(2.0, "update", ("a",)))
    *_, cut, seal = splices(session)
    assert (cut.token_ids, seal.num_tokens) == ([], 3 + 10 + 4)
    assert longest_tokens(session) == 3 + 30, "it was longer before"


def test_the_question_counts_where_the_context_is_longest_at_the_end() -> None:
    session = a_session_of_tokens(Event(1.0, "append", ("a",)), Event(2.0, "append", ("b",)))
    assert longest_tokens(session) == 3 + 30 + 4


def test_what_comes_with_the_seal_is_sent_with_it() -> None:
    session = a_session_of_tokens(Event(1.0, "append", ("a",)), Event(2.0, "append", ("b",)))
    *_, step, seal = splices(session)
    sent = submissions(session)
    assert sent[:-1] == splices(session)[:2]
    assert sent[-1] == TimedSplice(
        2.0, step.keep_tokens, step.token_ids + seal.token_ids, seals=True
    )


def test_gaps_grow_and_the_first_chunk_comes_when_it_did() -> None:
    session = a_session(Event(2.0, "append", ("a",)), Event(2.5, "append", ("b",)))
    assert [event.at_s for event in session.with_gaps(10.0).events] == [2.0, 7.0, 7.0]


def test_a_key_decides_the_token_ids_and_nothing_else() -> None:
    one, other, again = (
        generated("anns", 5, 1, key=key, rate=2.0, scale=Scale(tokens=1 / 8)) for key in "xyx"
    )
    assert [task_of(each) for each in one] == [task_of(each) for each in other]
    assert one[0].prefix == one[1].prefix != other[0].prefix
    assert one[0].steps != other[0].steps
    assert again == one


def test_in_token_counts_it_is_the_task_that_the_simulator_makes_of_the_trace() -> None:
    session = a_session(
        Event(1.0, "append", ("a",)), Event(2.0, "append", ("b", "c")), Event(3.0, "append", ("d",))
    )
    (planned,) = with_token_ids([session], "k")
    assert [task_of(planned)] == tasks([session])


def test_scarce_memory_is_a_third_of_what_is_open_but_holds_the_longest_prompt() -> None:
    session = a_session_of_tokens(Event(1.0, "append", ("a", "b", "c")))
    pressed = [replace(session, session_id=str(n)) for n in range(100)]
    assert num_kv_blocks(pressed, 67, scarce=False) == -(-6300 // 32) + 1
    assert num_kv_blocks(pressed, 67, scarce=True) == -(-2100 // 32) + 1
    assert num_kv_blocks(pressed[:1], 67, scarce=True) == 3 + 1 + 1


def test_an_engine_is_told_no_longer_context_than_its_memory_holds() -> None:
    assert max_prompt_tokens(11, 16_384) == 320
    assert max_prompt_tokens(1000, 16_384) == 16_384


def test_no_system_is_sent_a_list_that_its_model_cannot_take() -> None:
    """The third repetition has one: longer than 16,384 tokens until its last update."""
    turn = Turn(Cell("engine", "anns", HEAVY), NON_STREAMING, 3)
    found = sessions_of(turn, at_paper_speed("anns"), 134, 1.0)
    assert len(found) == 133
    assert all(longest_tokens(session) < MAX_MODEL_LEN for session in found)
