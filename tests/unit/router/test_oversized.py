"""Documents that are too long: what the room is, who is cut or refused, and what is seen of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.context import ContextLimits, ContextLog, Reserve, Room
from router.documents import ContentDocument
from router.encoder import PIECE_CHARS
from router.lengths import LengthLimits
from router.oversized import CONTEXT_TOO_LONG, SESSION_TOKENS_EXCEEDED, Oversized, fit
from router.text_input import TextInput
from router.tokenizer import ModelTokenizer
from stream2llm.api.errors import InvalidRequestError, OverloadedError
from stream2llm.api.options import OversizedDocuments
from stream2llm.api.requests import Document, PlainTemplate
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.sessions.prefix import as_tokens
from tests.router_ring import Ring, named, soon

REFUSE, CUT = OversizedDocuments.REFUSE, OversizedDocuments.CUT
PB_REFUSE, PB_CUT = pb.OVERSIZED_DOCUMENTS_REFUSE, pb.OVERSIZED_DOCUMENTS_CUT
MUCH = 1_000_000


def a_document(document_id: str, num_tokens: int, num_untokenized: int = 0) -> ContentDocument:
    return ContentDocument(document_id, as_tokens(range(num_tokens)), num_untokenized)


def a_ref(document_id: str) -> ContentDocument:
    return ContentDocument(document_id, None)


def lengths(documents: tuple[ContentDocument, ...]) -> list[int | None]:
    return [None if each.tokens is None else len(each.tokens) for each in documents]


# -- the room ---------------------------------------------------------------------


def a_log(max_model_len: int = 100, max_total_tokens: int = 1000) -> ContextLog:
    limits = ContextLimits(LengthLimits(max_model_len), max_total_tokens, 10, 50)
    return ContextLog(as_tokens(range(10)), limits)


def test_an_append_has_what_the_context_leaves_and_an_update_what_the_prefix_leaves() -> None:
    log = a_log()
    log.append([a_document("a", 20)])
    assert log.room("append", Reserve()) == Room(99 - 30, 1000 - 30)
    assert log.room("update", Reserve()) == Room(99 - 10, 1000 - 30)


def test_suffix_and_answer_are_kept_free() -> None:
    room = a_log().room("append", Reserve(suffix_tokens=5, answer_tokens=40))
    assert room == Room(60 - 5 - 10, 1000 - 10 - 5)
    assert a_log().room("append", Reserve(answer_tokens=200)).context_tokens == 0


def test_what_the_session_may_still_send_bounds_too() -> None:
    room = a_log(max_total_tokens=30).room("update", Reserve())
    assert (room.context_tokens, room.session_tokens, room.num_tokens) == (89, 20, 20)


# -- who does not fit -------------------------------------------------------------


def test_a_refused_document_is_an_empty_one_and_those_behind_it_fit() -> None:
    documents = [a_document("a", 3), a_document("b", 9), a_document("c", 5)]
    fitted, oversized = fit(documents, Room(8, 100), REFUSE, {}.get)
    assert lengths(fitted) == [3, 0, 5]
    assert oversized == (Oversized(1, 5, 9, CONTEXT_TOO_LONG),)


def test_a_cut_document_fills_the_room() -> None:
    documents = [a_document("a", 3), a_document("b", 9), a_document("c", 5), a_document("", 0)]
    fitted, oversized = fit(documents, Room(8, 100), CUT, {}.get)
    assert lengths(fitted) == [3, 5, 0, 0]
    assert [each.room_tokens for each in oversized] == [5, 0]


def test_the_tighter_limit_is_named() -> None:
    _, oversized = fit([a_document("a", 9)], Room(8, 4), CUT, {}.get)
    assert oversized == (Oversized(0, 4, 9, SESSION_TOKENS_EXCEEDED),)


def test_a_document_that_is_named_is_cut_in_this_list_alone() -> None:
    log = a_log()
    log.update([a_document("a", 60)])
    documents, oversized = fit(
        [a_document("b", 50), a_ref("a")], log.room("update", Reserve()), CUT, log.num_known
    )
    log.update(documents)
    assert len(log.sequence) == 99
    assert oversized == (Oversized(1, 39, 60, CONTEXT_TOO_LONG),)
    log.update([a_ref("a")])
    assert len(log.sequence) == 70


def test_a_name_in_a_list_means_what_the_list_brought_and_kept() -> None:
    fitted, oversized = fit([a_document("a", 9), a_ref("a")], Room(8, 100), REFUSE, {"a": 100}.get)
    assert lengths(fitted) == [0, None]
    assert len(oversized) == 1


def test_what_was_refused_costs_nothing() -> None:
    log = a_log(max_total_tokens=12)
    log.append([a_document("", 2)])
    for _ in range(3):
        documents, _ = fit(
            [a_document("", 5)], log.room("append", Reserve()), REFUSE, log.num_known
        )
        log.append(documents)
    assert len(log.sequence) == 12
    with pytest.raises(OverloadedError, match="has sent 17 tokens"):
        log.append([a_document("", 5)])


def test_untold_tokens_fail_a_session_that_did_not_ask() -> None:
    with pytest.raises(InvalidRequestError, match="has at least 100 tokens"):
        a_log().append([a_document("a", 89, num_untokenized=1)])
    with pytest.raises(OverloadedError, match="has sent 31 tokens"):
        a_log(max_total_tokens=30).append([a_document("a", 20, num_untokenized=1)])


# -- tokenizing no further than necessary -----------------------------------------


@pytest.fixture
def text(tiny_model: Path) -> Iterator[TextInput]:
    made = TextInput(ModelTokenizer(str(tiny_model)), MUCH)
    yield made
    made.close()


LONG = "the quick brown fox " * 20_000


async def test_a_long_text_is_tokenized_until_it_is_clear_that_it_cannot_fit(
    text: TextInput,
) -> None:
    (document,) = await text.documents([Document(LONG)], "append", 60_000, oversized=CUT)
    assert document.num_untokenized == 1
    assert 60_000 < len(document.tokens) < 60_000 + 2 * PIECE_CHARS
    assert np.array_equal(document.tokens, text.tokenizer.encode(LONG)[: len(document.tokens)])


async def test_a_text_of_too_many_bytes_is_not_tokenized(text: TextInput) -> None:
    """Bytes are compared with bytes: each of these characters has three."""
    wide = "€" * 20_000
    most_bytes = text.tokenizer.encoder.max_token_bytes
    fewest = -(-60_000 // most_bytes)
    (document,) = await text.documents([Document(wide)], "append", fewest - 1)
    assert (document.tokens.tolist(), document.num_untokenized) == ([], fewest)  # type: ignore[union-attr]
    (document,) = await text.documents([Document(wide)], "append", fewest)
    assert len(document.tokens) > fewest


async def test_behind_a_document_that_fails_the_session_nothing_is_tokenized(
    text: TextInput,
) -> None:
    inputs = [Document("the quick"), Document(LONG), Document("fox")]
    documents = await text.documents(inputs, "append", 1)
    assert [each.num_untokenized > 0 for each in documents] == [False, True, True]
    assert all(len(each.tokens) == 0 for each in documents[1:])  # type: ignore[arg-type]


async def test_a_short_document_does_not_wait_for_long_ones(text: TextInput) -> None:
    release = threading.Event()
    text._encoding._long.submit(release.wait)
    long = asyncio.create_task(text.documents([Document(LONG)], "append", MUCH))
    try:
        await soon(text.documents([Document(LONG[:10_000])], "append", MUCH))
        assert not long.done()
    finally:
        release.set()
    await long


async def test_long_documents_take_turns(text: TextInput) -> None:
    order: list[str] = []

    async def tokenize(name: str, content: str) -> None:
        await text.documents([Document(content)], "append", MUCH)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for name, content in (("long", LONG), ("shorter", LONG[:100_000])):
            group.create_task(tokenize(name, content))
    assert order == ["shorter", "long"]


async def test_a_prefix_that_cannot_fit_is_named(text: TextInput) -> None:
    small = TextInput(text.tokenizer, 100)
    with pytest.raises(InvalidRequestError, match=r"suffix has at least \d+ tokens; .* 100") as why:
        await small.frame(PlainTemplate(suffix=LONG))
    assert (why.value.reason, why.value.field) == ("CONTEXT_TOO_LONG", "suffix")
    small.close()


@pytest.mark.parametrize("num_tokens", range(9))
async def test_a_cut_is_between_two_characters(text: TextInput, num_tokens: int) -> None:
    page = "a€😀b"  # 1, 3, 4 and 1 bytes, each a token
    kept_tokens, kept_chars = await text.cut(page, num_tokens)
    expected = max(n for n in range(5) if len(page[:n].encode()) <= num_tokens)
    assert (kept_tokens, kept_chars) == (len(page[:expected].encode()), expected)
    whole = text.tokenizer.encode(page)[:kept_tokens].tolist()
    assert text.tokenizer.backend.decode(whole) == page[:expected]


async def test_a_long_text_is_cut_in_a_later_piece(text: TextInput) -> None:
    kept_tokens, kept_chars = await text.cut(LONG, 70_000)
    assert kept_tokens == 70_000
    kept = text.tokenizer.backend.decode(text.tokenizer.encode(LONG)[:70_000].tolist())
    assert kept == LONG[:kept_chars]


# -- sessions ---------------------------------------------------------------------


async def open_session(ring: Ring, action: Any = PB_REFUSE, max_tokens: int = 4) -> Any:
    sampling = pb.SamplingParameters(max_tokens=max_tokens, temperature=0)
    return await ring.opened("P", " Q?", sampling=sampling, oversized_documents=action)


async def finish(ring: Ring, session: Any) -> list[int]:
    await session.finish()
    return list(ring.record.sequence)


async def test_a_refused_document_leaves_the_others(make_ring: Any) -> None:
    ring = await make_ring(max_model_len=200)
    session = await open_session(ring)
    await session.append(("a", "the fox"), ("b", "x1" * 400), ("c", "the dog"))
    told = await session.next("oversized_document")
    assert (told.sequence, told.index, told.id, told.action) == (2, 1, "b", PB_REFUSE)
    assert (told.reason, told.kept_tokens, told.kept_chars) == ("CONTEXT_TOO_LONG", 0, 0)
    assert told.cut_chars == 800
    assert not told.HasField("cut_tokens")
    kept = [ring.encode(text) for text in ("P", "the fox", "the dog", " Q?")]
    assert await finish(ring, session) == [i for ids in kept for i in ids]


async def test_a_cut_document_leaves_room_for_suffix_and_answer(make_ring: Any) -> None:
    ring = await make_ring(max_model_len=100)
    session = await open_session(ring, PB_CUT, max_tokens=20)
    page = "x1" * 400
    await session.append(("a", "the fox"), ("b", page))
    told = await session.next("oversized_document")
    assert (told.index, told.action) == (1, PB_CUT)
    assert told.kept_chars + told.cut_chars == 800
    sequence = await finish(ring, session)
    assert len(sequence) == 80
    around = [*ring.encode("P"), *ring.encode("the fox")], ring.encode(" Q?")
    kept = ring.encode(page)[: told.kept_tokens]
    assert sequence == [*around[0], *kept, *around[1]]
    assert ring.decode_text(kept) == page[: told.kept_chars]


async def test_in_an_update_a_named_document_is_cut_too_and_places_stay(make_ring: Any) -> None:
    ring = await make_ring(max_model_len=100)
    session = await open_session(ring, PB_CUT, max_tokens=1)
    await session.update(("a", "x1" * 30))
    await session.update(("b", "z2" * 25), named("a"))
    told = await session.next("oversized_document")
    assert (told.sequence, told.index, told.id) == (3, 1, "a")
    assert told.kept_tokens + told.cut_tokens == len(ring.encode("x1" * 30))
    assert not told.HasField("kept_chars")
    assert len(await finish(ring, session)) == 99


async def test_a_list_reports_what_it_names_again_only_when_less_or_more_is_kept(
    make_ring: Any,
) -> None:
    ring = await make_ring(max_model_len=100)
    session = await open_session(ring, PB_CUT, max_tokens=1)
    await session.update(("a", "x1" * 400))
    first = await session.next("oversized_document")
    await session.update(named("a"))
    await session.update(("b", "the fox"), named("a"))
    second = await session.next("oversized_document")
    assert (first.sequence, second.sequence) == (2, 4)
    assert second.kept_tokens < first.kept_tokens
    await finish(ring, session)


async def test_a_ranking_note_without_room_does_not_fail_the_seal(make_ring: Any) -> None:
    ring = await make_ring(max_model_len=100)
    sampling = pb.SamplingParameters(temperature=0)
    session = await ring.opened(
        "P", " Q?", sampling=sampling, oversized_documents=PB_CUT,
        ordering=pb.DOCUMENT_ORDERING_STABLE,
    )  # fmt: skip
    await session.update(("a", "the fox"), ("b", "x1" * 400))
    await session.next("oversized_document")
    await session.update(named("b"), named("a"))
    sequence = await finish(ring, session)
    assert sequence[-len(ring.encode(" Q?")) :] == ring.encode(" Q?")
    assert len(sequence) < 100


async def test_token_ids_are_cut_as_well(make_ring: Any) -> None:
    ring = await make_ring(max_model_len=100)
    session = await open_session(ring, PB_CUT)
    await session.append(pb.Document(token_ids=pb.TokenIds(ids=[7] * 200)))
    told = await session.next("oversized_document")
    assert told.kept_tokens + told.cut_tokens == 200
    assert len(await finish(ring, session)) == 96


async def test_the_tokens_of_a_session_bound_documents_too(make_ring: Any) -> None:
    ring = await make_ring(max_session_tokens=30)
    session = await open_session(ring)
    await session.append("x1" * 30)
    assert (await session.next("oversized_document")).reason == "SESSION_TOKENS_EXCEEDED"
    expected = [*ring.encode("P"), *ring.encode(" Q?")]
    assert await finish(ring, session) == expected


async def test_by_default_the_session_fails(make_ring: Any) -> None:
    ring = await make_ring(max_model_len=100)
    session = await open_session(ring, pb.OVERSIZED_DOCUMENTS_UNSPECIFIED)
    await session.append("the fox", "x1" * 400)
    assert "the context has" in (await session.failure()).details()


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ({"oversized_documents": 77}, "oversized_documents"),
        ({"control_tokens": 9}, "control_tokens"),
    ],
)
async def test_an_unknown_option_is_named(ring: Ring, option: Any, field: str) -> None:
    session = await ring.opened("P", **option)
    assert (
        f"{field} is {next(iter(option.values()))}; it must be"
        in (await session.failure()).details()
    )


async def test_control_tokens_are_parsed_where_the_session_asks(ring: Ring) -> None:
    for option, in_frame, in_documents in (
        (pb.CONTROL_TOKENS_UNSPECIFIED, False, False),
        (pb.CONTROL_TOKENS_TEMPLATE, True, False),
        (pb.CONTROL_TOKENS_ALL, True, True),
    ):
        sampling = pb.SamplingParameters(max_tokens=2)
        session = await ring.opened(
            "<|end|>a", "b<|end|>", sampling=sampling, control_tokens=option
        )
        await session.append("x<|end|>y")
        await session.finish(suffix=pb.Content(text="c<|end|>"))
        encode = {False: ring.encode, True: ring.encode_written}
        parts = (("<|end|>a", in_frame), ("x<|end|>y", in_documents), ("c<|end|>", in_frame))
        assert ring.record.sequence == [i for part, how in parts for i in encode[how](part)]
