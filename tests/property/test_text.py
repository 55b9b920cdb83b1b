"""Invariants of the way from token ids to text.

1. The pieces put together are what decoding all ids at once gives, with the text of special
   tokens and without; the bytes of the tokens put together are that text too.
2. A stop string is found where searching the whole text one character at a time finds it,
   wherever the pieces are cut, but not in pieces that may not stop; nothing before it is lost,
   and nothing of it shown unless that is asked for.
3. Without a stop string nothing is lost; held back is only what may become one.
4. How an engine groups tokens into steps changes neither text nor ending.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from router.answer import Answer
from router.detokenizer import ByteLevelDetokenizer, Detokenizer, Detokenizers, StreamDetokenizer
from router.encoder import TextEncoder
from router.stop_strings import StopStringMatcher
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.token_step import TokenStep
from stream2llm.models.cache import is_ready, model_dir
from stream2llm.serving.sessions.prefix import as_tokens
from tests.tiny_model import tiny_tokenizer
from tests.tokenizer_families import FAMILIES

TINY = tiny_tokenizer()
NO_PROMPT = as_tokens([])


def maker(tokenizer: Tokenizer) -> Callable[[], Detokenizer]:
    make = Detokenizers(tokenizer).of_answer
    return lambda: make(NO_PROMPT)


MAKE = maker(TINY)
SMOLLM2 = "smollm2-135m-instruct"
IDS = st.lists(st.integers(0, 310), max_size=40)


def pieces_of(make: Callable[[], Detokenizer], ids: list[int]) -> str:
    detokenizer = make()
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


@given(IDS)
def test_pieces_are_the_whole(ids: list[int]) -> None:
    assert pieces_of(MAKE, ids) == TINY.decode(ids, skip_special_tokens=True)


@given(st.text())
def test_text_survives_encoding_and_pieces(text: str) -> None:
    assert pieces_of(MAKE, TINY.encode(text).ids) == text


@given(IDS)
def test_other_vocabularies_stream_too(ids: list[int]) -> None:
    detokenizer = StreamDetokenizer(TINY)
    pieces = "".join([*map(detokenizer.push, ids), detokenizer.flush()])
    assert pieces == TINY.decode(ids, skip_special_tokens=True)


@pytest.mark.skipif(not is_ready(SMOLLM2), reason=f"{SMOLLM2} is not in the cache: make model")
def test_pieces_are_the_whole_for_the_default_model() -> None:
    tokenizer = Tokenizer.from_file(str(model_dir(SMOLLM2) / "tokenizer.json"))
    make = maker(tokenizer)
    assert isinstance(make(), ByteLevelDetokenizer)
    seeded = random.Random(7)
    for _ in range(300):
        ids = [seeded.randrange(tokenizer.get_vocab_size() + 5) for _ in range(50)]
        assert pieces_of(make, ids) == tokenizer.decode(ids, skip_special_tokens=True)


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


def first_match(
    text: str, stops: list[str], num_free_chars: int, *, shows_them: bool
) -> tuple[str, str | None]:
    """Invariant 2, the slow way."""
    for end in range(num_free_chars + 1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end if shows_them else end - len(longest)], longest
    return text, None


@given(st.lists(st.text("abc", max_size=4), max_size=12), STOPS, st.integers(0, 3), st.booleans())
def test_stop_strings_are_found_wherever_the_text_is_cut(
    pieces: list[str], stops: list[str], num_free: int, shows_them: bool
) -> None:
    """The first `num_free` pieces may not stop."""
    matcher, shown = StopStringMatcher(stops, shows_them=shows_them), ""
    for number, piece in enumerate(pieces, start=1):
        matched = matcher.push(piece, may_stop=number > num_free)
        shown += matched.text
        if matched.stop_string:
            break
        held = "".join(pieces[:number])[len(shown) :]
        assert any(stop.startswith(held) for stop in stops)
        assert not (held and shows_them)
    else:
        shown, matched = shown + matcher.flush(), None  # type: ignore[assignment]
    found = matched.stop_string if matched else None
    num_free_chars = len("".join(pieces[:num_free]))
    expected = first_match("".join(pieces), stops, num_free_chars, shows_them=shows_them)
    assert (shown, found) == expected


@given(
    IDS,
    st.lists(st.integers(1, 5), min_size=40, max_size=40),
    STOPS,
    st.integers(1, 45),
    st.integers(0, 9),
)
def test_steps_do_not_matter(
    ids: list[int], sizes: list[int], stops: list[str], max_tokens: int, min_tokens: int
) -> None:
    def run(groups: list[list[int]]) -> Any:
        sampling = SamplingParameters(stop_strings=tuple(stops), min_tokens=min_tokens)
        answer = Answer(MAKE(), sampling, max_tokens, lambda _: b"")
        text, token_ids = "", []
        for group in groups:
            taken = answer.take(TokenStep(tuple(group)))
            text, token_ids = text + taken.delta.text, [*token_ids, *taken.delta.token_ids]
            if taken.ending:
                return text, token_ids, taken.ending, answer.num_tokens
        return text, token_ids, None, answer.num_tokens

    groups, rest = [], ids
    for size in sizes:
        groups.append(rest[:size])
        rest = rest[size:]
    assert run(groups) == run([[token_id] for token_id in ids])


# -- every family of tokenizers ---------------------------------------------------

FAMILY_TOKENIZERS = {family.name: family.tokenizer() for family in FAMILIES}
ENCODERS = {name: TextEncoder(each, name) for name, each in FAMILY_TOKENIZERS.items()}
# Those of SentencePiece's kind, whose vocabularies have word marks for spaces.
WORD_MARKED = {
    name for name in FAMILY_TOKENIZERS if "level" not in name and name not in ("llama3", "tiny")
}
# With what the vocabularies know, what they have no token for, and what SentencePiece marks.
WORDS = st.lists(
    st.sampled_from([" ", "  ", "the", " end", "\n", "€", "😀", "e\u0301", "\u2581", "x1", "</s>"])
)
TEXTS = st.one_of(WORDS.map("".join), st.text(max_size=20))


def continued(name: str, prompt: str, text: str) -> tuple[list[int], list[int]]:
    """A prompt and how it goes on, each in tokens."""
    encoder = ENCODERS[name]
    before = [*encoder.head, *encoder.encode(encoder.parts(prompt, is_first=True))]
    return [int(i) for i in before], encoder.encode(encoder.parts(text)).tolist()


@pytest.mark.parametrize("name", FAMILY_TOKENIZERS)
@settings(max_examples=25)
@given(prompt=TEXTS, text=TEXTS)
def test_an_answer_goes_on_where_the_prompt_ends(name: str, prompt: str, text: str) -> None:
    """Its pieces are the text that was encoded: leading space, bytes and all."""
    before, ids = continued(name, prompt or "x", text)
    detokenizer = Detokenizers(FAMILY_TOKENIZERS[name]).of_answer(as_tokens(before))
    pieces = "".join([*map(detokenizer.push, ids), detokenizer.flush()])
    # A text's own word marks are spaces to SentencePiece, in its vocabulary and ours.
    assert pieces == (text if name not in WORD_MARKED else text.replace("\u2581", " "))


@pytest.mark.parametrize("name", FAMILY_TOKENIZERS)
@settings(max_examples=25)
@given(prompt=TEXTS, text=TEXTS)
def test_pieces_are_what_decoding_all_at_once_adds(name: str, prompt: str, text: str) -> None:
    tokenizer = FAMILY_TOKENIZERS[name]
    before, ids = continued(name, prompt, text)
    detokenizer = Detokenizers(tokenizer).of_answer(as_tokens(before))
    pieces = "".join([*map(detokenizer.push, ids), detokenizer.flush()])
    assert tokenizer.decode(before) + pieces == tokenizer.decode([*before, *ids])


@pytest.mark.parametrize("name", FAMILY_TOKENIZERS)
@settings(max_examples=25)
@given(prompt=TEXTS, texts=st.lists(TEXTS | st.integers(0, 5), max_size=4))
def test_special_tokens_have_text_where_they_are_not_skipped(
    name: str, prompt: str, texts: list[str | int]
) -> None:
    """A number stands for a control token."""
    tokenizer, control = FAMILY_TOKENIZERS[name], sorted(ENCODERS[name].control_ids)
    before, ids = continued(name, prompt, "")
    for text in texts:
        ids += [control[text]] if isinstance(text, int) else continued(name, prompt, text)[1]
    detokenizers = Detokenizers(tokenizer)
    detokenizer = detokenizers.of_answer(as_tokens(before), skip_special_tokens=False)
    pieces = "".join([*map(detokenizer.push, ids), detokenizer.flush()])
    first, whole = (tokenizer.decode(i, skip_special_tokens=False) for i in (before, before + ids))
    assert first + pieces == whole
    if before:  # else the first token loses its word mark
        assert b"".join(map(detokenizers.bytes_of, ids)).decode() == pieces


@pytest.mark.parametrize("name", FAMILY_TOKENIZERS)
def test_a_stop_string_may_begin_with_a_space_and_hold_bytes(name: str) -> None:
    before, ids = continued(name, "the quick", " brown 😀€ fox")
    detokenizer = Detokenizers(FAMILY_TOKENIZERS[name]).of_answer(as_tokens(before))
    answer = Answer(detokenizer, SamplingParameters(stop_strings=" 😀€"), 100, lambda _: b"")  # type: ignore[arg-type]
    text, ending = "", None
    while ids and ending is None:
        taken = answer.take(TokenStep((ids.pop(0),)))
        text, ending = text + taken.delta.text, taken.ending
    assert text == " brown"
    assert ending.stop_string == " 😀€"


@pytest.mark.parametrize("name", FAMILY_TOKENIZERS)
@settings(max_examples=25)
@given(first=TEXTS, second=TEXTS)
def test_texts_are_encoded_without_regard_to_each_other(name: str, first: str, second: str) -> None:
    """And decoded as one; no text makes a control token."""
    tokenizer, encoder = FAMILY_TOKENIZERS[name], ENCODERS[name]
    ids = [i for text in ("x", first, second) for i in encoder.encode(encoder.parts(text)).tolist()]
    assert not encoder.control_ids.intersection(ids)
    whole = f"x{first}{second}"
    expected = whole if name not in WORD_MARKED else whole.replace("\u2581", " ")
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected
