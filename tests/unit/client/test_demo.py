"""What the demo sends and when; and the three ways against a scripted server."""

from __future__ import annotations

import asyncio
import itertools
from pydoc_data.topics import topics

import pytest

from examples.demo.crowd import (
    MAX_LONG_WORDS,
    MIN_LONG_WORDS,
    NUM_SESSIONS,
    Crowd,
    ask_at_once,
    contexts,
)
from examples.demo.documents import (
    NOISE_TOPICS,
    SLOT,
    TOPICS,
    Way,
    arrivals_of,
    conversation,
    documents_from,
    trimmed,
)
from examples.demo.steps import ask_all_ways, compare_policies
from examples.demo.view import LinesView
from stream2llm.client import Document
from stream2llm.serving.system.clock import SystemClock
from tests.fake_router import Conversation, forever, polite


def count_words(text: str) -> int:
    return len(text.split())


def documents() -> tuple[Document, ...]:
    return tuple(Document(f"text of {name}", id=name) for name in TOPICS)


def noise() -> tuple[Document, ...]:
    return tuple(Document(f"text of {name}", id=name) for name in NOISE_TOPICS)


def test_documents_are_trimmed_at_paragraphs():
    text = "one two\n\nthree\n\nfour five six"
    assert trimmed(text, 3, count_words) == "one two\n\nthree\n\n"
    assert trimmed(text, 100, count_words) == text + "\n\n"
    assert trimmed(text, 1, count_words) == ""
    assert trimmed("one\n\nHeading\n====\n\ntwo three", 3, count_words) == "one\n\n"


def test_the_context_stays_within_its_budget():
    made = documents_from(topics, TOPICS, count_words)
    assert [document.id for document in made] == list(TOPICS)
    assert all(document.content for document in made)
    assert sum(count_words(str(document.content)) for document in made) <= 2_500


@pytest.mark.parametrize("way", list(Way))
def test_all_ways_end_with_the_same_documents_at_the_same_time(way: Way):
    arrivals = arrivals_of(way, documents(), noise(), gap_s=2.0)
    assert arrivals[-1].at_s == 12.0
    assert [a.at_s for a in arrivals] == sorted(a.at_s for a in arrivals)
    final: list[Document] = []
    for arrival in arrivals:
        final = list(arrival.documents) if arrival.replaces else [*final, *arrival.documents]
    assert final == list(documents())


def test_refinements_keep_ever_more_leading_documents():
    lists = [a.documents for a in arrivals_of(Way.UPDATE, documents(), noise(), 1.0)]
    kept = []
    for older, newer in itertools.pairwise(lists):
        same = [a == b for a, b in zip(older, newer, strict=False)]
        kept.append(same.index(False))
    assert kept == [2, 4, 5]


def test_each_way_begins_with_a_line_of_its_own():
    first_lines = {conversation(way, "run")[0].content for way in Way}
    assert len(first_lines) == len(Way)
    assert conversation(Way.ONCE, "x")[1].content.count(SLOT) == 1


async def test_three_ways_against_a_scripted_server(router, capsys):
    results = await ask_all_ways(router.address, documents(), noise(), 0.0, LinesView())
    assert [result.way for result in results] == list(Way)
    assert {result.answer for result in results} == {"one two three"}
    assert {result.num_documents for result in results} == {6}
    events = [
        [request.WhichOneof("event") for request in conversation.received]
        for conversation in router.conversations
    ]
    assert events == [
        ["open", "append", "seal"],
        ["open", *["append"] * 6, "seal"],
        ["open", *["update"] * 4, "seal"],
    ]
    printed = capsys.readouterr().out
    assert "arrived: with" in printed
    assert "answer: one two three" in printed
    assert "invali-" in printed


@pytest.mark.parametrize(
    ("tokens_per_s", "longest"), [(1, MIN_LONG_WORDS), (200, 390), (1e6, MAX_LONG_WORDS)]
)
def test_a_crowd_is_as_large_as_the_machine_is_fast(tokens_per_s: float, longest: int) -> None:
    sizes = [len(text.split()) for text in contexts(tokens_per_s)]
    assert (len(sizes), max(sizes)) == (NUM_SESSIONS, longest)
    assert sorted(sizes)[NUM_SESSIONS // 2] < longest


async def test_a_crowd_comes_by_each_policy_once(router, capsys):
    (measured, *_) = await ask_all_ways(router.address, documents(), noise(), 0.0, LinesView())
    router.conversations.clear()
    policies: list[str] = []
    arguments = (policies.append, router.address, "srpf", measured, LinesView())
    await asyncio.to_thread(compare_policies, *arguments)
    assert policies == ["fcfs", "srpf"]
    prefixes = {each.received[0].open.plain.prefix.text for each in router.conversations}
    assert len(prefixes) == len(router.conversations) == 2 * NUM_SESSIONS
    assert capsys.readouterr().out.count("TTFT from seal: P50") == 2


async def test_a_crowd_shows_what_there_is_when_its_time_is_over(router):
    async def every_second(conversation: Conversation) -> None:
        await (forever() if len(router.conversations) % 2 else polite(conversation))

    router.script = every_second
    crowd = await ask_at_once(router.address, "fcfs", contexts(1), SystemClock(), limit_s=0.5)
    assert 2 * crowd.num_late >= NUM_SESSIONS
    assert len(crowd.waits_s) + crowd.num_late == NUM_SESSIONS
    assert str(crowd).endswith(f"; {crowd.num_late} without an answer when time was over")


@pytest.mark.parametrize("waits_s", [(), (0.5,)])
def test_a_crowd_with_hardly_an_answer_has_no_quantiles(waits_s: tuple[float, ...]) -> None:
    assert "no TTFT to compare; 49 without" in str(Crowd("srpf", waits_s, 49))
