"""Sessions with stable order: what prefill gets, and how the model learns the ranking."""

from __future__ import annotations

from typing import Any

import pytest

from router.arrangement import Arrangement, ListedDocument
from router.ordering import layout
from router.ranking_note import DEFAULT_RANKING_NOTE, ranking_note
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.sessions.prefix import as_tokens
from tests.router_ring import Conversation, Ring, named

STABLE = pb.DOCUMENT_ORDERING_STABLE
GREEDY = pb.SamplingParameters(temperature=0, max_tokens=3)
TEXTS = {"a": "the quick ", "b": "brown fox ", "c": "jumps over ", "d": "the lazy dog "}


def texts(names: str) -> list[tuple[str, str]]:
    return [(name, TEXTS[name]) for name in names]


async def converse(ring: Ring, prefix: str = "P ", suffix: str = " Q?", **fields: Any) -> Any:
    return await ring.opened(prefix, suffix, sampling=GREEDY, ordering=STABLE, **fields)


async def sealed(ring: Ring, session: Conversation, **fields: Any) -> list[int]:
    """The prompt that prefill and decode were given."""
    answered = await session.finish(**fields)
    prompt: list[int] = ring.record.sequence
    assert answered.finished.usage.prompt_tokens == len(prompt)
    assert answered.token_ids == ring.brain.answer(prompt, 3)
    assert ring.decode.prompts[-1][:-1] == prompt
    return prompt


def joined(ring: Ring, *parts: str) -> list[int]:
    """Each part tokenized on its own, as the router does."""
    return [token_id for part in parts for token_id in ring.encode(part)]


def laid_out(ring: Ring, names: str, note: str = "", suffix: str = " Q?") -> list[int]:
    parts = ["P ", *(TEXTS[name] for name in names)]
    return joined(ring, *parts, *([note] if note else []), suffix)


def default_note(ranking: str) -> str:
    return DEFAULT_RANKING_NOTE.replace("{ranking}", ranking)


# -- the order -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        pytest.param("abc", "dba", "abd", id="left-out-at-the-end-costs-nobody-else-a-place"),
        pytest.param("abcd", "ecda", "aecd", id="behind-the-first-left-out-the-ranking-decides"),
        pytest.param("ab", "cab", "abc", id="a-new-one-in-front-moves-nothing"),
        # Repeated documents keep as many places as they are wanted.
        ("aab", "baa", "aab"),
        ("aab", "ba", "ab"),
        ("ab", "aab", "aba"),
        pytest.param("", "cab", "cab", id="the-first-list-stands-as-given"),
    ],
)
def test_the_layout_of_a_list(before: str, wanted: str, after: str) -> None:
    assert layout(before, wanted) == list(after)


# -- the session -----------------------------------------------------------------


async def test_a_new_order_invalidates_nothing_and_the_model_is_told(ring: Ring) -> None:
    session = await converse(ring)
    await session.update(*texts("abc"))
    await session.update(named("c"), ("d", TEXTS["d"]), named("a"), named("b"))
    assert (await sealed(ring, session)) == laid_out(ring, "abcd", default_note("3, 4, 1, 2"))
    assert ring.record.invalidated == 0


async def test_the_client_is_told_where_its_documents_stood(ring: Ring) -> None:
    session = await converse(ring)
    await session.update(*texts("abc"))
    await session.update(named("c"), ("d", TEXTS["d"]), named("a"))
    await session.append(*texts("b"))
    # They stand as a, c, d, b; the list is c, d, a, b.
    assert list((await session.finish()).finished.document_order) == [2, 0, 1, 3]


async def test_documents_that_stand_as_given_have_no_order_to_tell(ring: Ring) -> None:
    session = await ring.opened("P ", sampling=GREEDY)
    await session.update(*texts("ab"))
    await session.update(named("b"), named("a"))
    await session.seal()
    assert not (await session.answer()).finished.document_order


async def test_without_a_difference_there_is_no_note(ring: Ring) -> None:
    session = await converse(ring)
    await session.update(*texts("abc"))
    await session.update(named("b"), named("a"))
    await session.update(named("a"), named("b"), ("d", TEXTS["d"]))
    assert await sealed(ring, session) == laid_out(ring, "abd")


async def test_appends_follow_in_the_list_and_in_the_ranking(ring: Ring) -> None:
    session = await converse(ring)
    await session.append(*texts("ab"))
    await session.update(named("b"), named("a"))
    await session.append(*texts("c"))
    await session.append(TEXTS["d"])  # without an id
    assert (await sealed(ring, session)) == laid_out(ring, "abcd", default_note("2, 1, 3, 4"))


async def test_a_document_that_changes_under_its_id_is_another_one(ring: Ring) -> None:
    session = await converse(ring)
    await session.update(*texts("abc"))
    await session.update(("b", "lazy "), named("c"), named("a"))
    prompt = await sealed(ring, session)
    note = default_note("2, 3, 1")
    assert prompt == joined(ring, "P ", TEXTS["a"], "lazy ", TEXTS["c"], note, " Q?")


async def test_equal_documents_are_one_whatever_they_are_called(ring: Ring) -> None:
    session = await converse(ring)
    await session.append(TEXTS["a"], TEXTS["b"])
    await session.update(("x", TEXTS["b"]), ("y", TEXTS["a"]))
    assert await sealed(ring, session) == laid_out(ring, "ab", default_note("2, 1"))
    assert ring.record.invalidated == 0


async def test_a_document_without_text_has_no_number(ring: Ring) -> None:
    session = await converse(ring)
    await session.update(("e", ""), *texts("ab"))
    await session.update(named("b"), named("e"), named("a"))
    assert await sealed(ring, session) == laid_out(ring, "ab", default_note("2, 1"))


# -- the note --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "note"),
    [
        ("\nBest first: {ranking}.", "\nBest first: 2, 1."),
        ("[{ids}]", "[b, a]"),
        ("{ids}/{ranking}", "b, a/2, 1"),
        ("", ""),
    ],
)
async def test_a_session_may_have_a_note_of_its_own(ring: Ring, template: str, note: str) -> None:
    session = await converse(ring, ranking_note=template)
    await session.update(*texts("ab"))
    await session.update(named("b"), named("a"))
    assert await sealed(ring, session) == laid_out(ring, "ab", note)


async def test_the_note_stands_before_a_suffix_that_comes_with_the_seal(ring: Ring) -> None:
    session = await converse(ring)
    await session.update(*texts("ab"))
    await session.update(named("b"), named("a"))
    suffix = pb.Content(token_ids=pb.TokenIds(ids=[40, 41]))
    prompt = await sealed(ring, session, suffix=suffix)
    assert prompt == [*laid_out(ring, "ab", default_note("2, 1"), suffix=""), 40, 41]


async def test_in_a_chat_the_note_is_in_the_turn_of_the_documents(ring: Ring) -> None:
    messages = [
        pb.ChatMessage(role="system", content="be nice"),
        pb.ChatMessage(role="user", content="{{context}} Question?"),
    ]
    session = ring.converse()
    chat = pb.ChatTemplate(messages=messages)
    await session.send(open=pb.OpenSession(chat=chat, sampling=GREEDY, ordering=STABLE))
    await session.update(*texts("ab"))
    await session.update(named("b"), named("a"))
    left = "<|turn|>system\nbe nice<|end|>\n<|turn|>user\n"
    right = " Question?<|end|>\n<|turn|>assistant\n"
    note = default_note("2, 1")
    inside = joined(ring, TEXTS["a"], TEXTS["b"], note)
    expected = [*ring.encode_written(left), *inside, *ring.encode_written(right)]
    assert await sealed(ring, session) == expected


def test_a_document_without_an_id_goes_by_its_number() -> None:
    listed = [ListedDocument("", as_tokens([1])), ListedDocument("{ranking}", as_tokens([2]))]
    arrangement = Arrangement().append(listed).update(listed[::-1])
    assert ranking_note("{ids}; {ranking}", arrangement) == "{ranking}, 1; 2, 1"


async def test_the_counter_tells_the_orders_apart(ring: Ring) -> None:
    session = await converse(ring)
    await session.update(*texts("ab"))
    await ring.told(2)
    await session.update(named("b"))
    await sealed(ring, session)
    name = "stream2llm_input_tokens_invalidated_total"
    assert ring.metric(name, ordering="stable") == ring.record.invalidated > 0
