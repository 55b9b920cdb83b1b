"""The answer's tokens in the prompt count in the penalties, exactly, and in bad words that begin among them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.v1.sample.ops.bad_words import apply_bad_words

from stream2llm.engine.answer_bad_words import AnswerBadWords
from stream2llm.engine.answer_penalty import (
    ANSWER_TOKENS_KEY,
    AnswerPenalty,
    SampledAgain,
    before_repetition,
    missing_penalty,
)


def repetition(logit: float, penalty: float) -> float:
    """vLLM's repetition penalty."""
    return logit / penalty if logit > 0 else logit * penalty


def applied(
    params: SamplingParams, prompt: list[int], output: list[int], logits: torch.Tensor
) -> torch.Tensor:
    """One step of one request; the method that makes its processor needs no state."""
    make = AnswerPenalty.new_req_logits_processor
    result: torch.Tensor = make(object.__new__(AnswerPenalty), params)(prompt, output, logits)
    return result


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("missing", [-1.5, 0.0, 0.3, 2.0])
def test_after_the_repetition_penalty_just_the_missing_penalty_is_gone(
    penalty: float, missing: float
) -> None:
    logits = torch.tensor([-3.0, -0.1, 0.0, 0.1, 5.0])
    offset = before_repetition(logits, torch.full((5,), missing), penalty)
    for before, after in zip(logits.tolist(), offset.tolist(), strict=True):
        expected = repetition(before, penalty) - missing
        assert repetition(after, penalty) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.lists(st.integers(0, 5), max_size=12),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_a_continued_answer_is_penalised_as_one_that_was_never_interrupted(
    before: list[int], since: list[int], presence: float, frequency: float
) -> None:
    """`before` is in the prompt, behind other tokens; vLLM's own penalties count `since`."""
    params = SamplingParams(
        presence_penalty=presence,
        frequency_penalty=frequency,
        extra_args={ANSWER_TOKENS_KEY: len(before)},
    )
    if not (presence or frequency):
        return
    logits = torch.linspace(-1, 1, 6, dtype=torch.float64)
    changed = applied(params, [0, 1, 2, *before], since, logits.clone()).tolist()
    own, whole = Counter(since), Counter(before + since)
    for token in range(6):
        by_vllm = frequency * own[token] + presence * (own[token] > 0)
        wanted = frequency * whole[token] + presence * (whole[token] > 0)
        assert changed[token] - by_vllm == pytest.approx(float(logits[token]) - wanted)


def test_a_value_beyond_the_logits_type_is_cut_instead_of_raising() -> None:
    params = SamplingParams(
        presence_penalty=2.0, repetition_penalty=1e-40, extra_args={ANSWER_TOKENS_KEY: 1}
    )
    logits = applied(params, [2, 1], [], torch.zeros(3))
    assert logits[1] == torch.finfo(torch.float32).min
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("extra", [None, {}, {ANSWER_TOKENS_KEY: 0}])
def test_a_prompt_without_a_part_of_the_answer_needs_nothing(extra: dict[str, int] | None) -> None:
    params = SamplingParams(presence_penalty=1.0, extra_args=extra)
    assert AnswerPenalty.new_req_logits_processor(object.__new__(AnswerPenalty), params) is None


def test_presence_is_missing_until_the_engine_samples_the_token_itself() -> None:
    assert missing_penalty(0.5, 0.2, 3, sampled_again=False) == pytest.approx(1.1)
    assert missing_penalty(0.5, 0.2, 3, sampled_again=True) == pytest.approx(0.6)


TOKENS = st.integers(0, 4)
# A step: so many of the last tokens are taken back, placeholders become tokens or not, one comes.
STEPS = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(-1, 4)), max_size=40)


@given(st.sets(TOKENS), st.lists(TOKENS, max_size=5), STEPS)
def test_tokens_are_found_as_if_the_whole_answer_were_read(
    wanted: set[int], answer: list[int], steps: list[tuple[int, bool, int]]
) -> None:
    sampled = SampledAgain(tuple(wanted))
    assert sampled.in_answer(answer) == wanted.intersection(answer)
    for num_taken_back, is_known, new in steps:
        if is_known:
            answer[:] = [(place * 7) % 5 if each < 0 else each for place, each in enumerate(answer)]
        del answer[max(len(answer) - num_taken_back, 0) :]
        answer.append(new)
        assert sampled.in_answer(answer) == wanted.intersection(answer)


class CountedReads(list[int]):
    """An answer that counts how often one of its tokens is read."""

    num_reads = 0

    def __getitem__(self, place: object) -> object:  # type: ignore[override]
        self.num_reads += 1
        return super().__getitem__(place)  # type: ignore[index]

    def __contains__(self, token: object) -> bool:
        raise AssertionError("reads all of it")


def test_a_step_reads_a_bounded_number_of_tokens() -> None:
    sampled, answer = SampledAgain((1,)), CountedReads()
    for _ in range(1000):
        answer.append(2)
        before = answer.num_reads
        assert not sampled.in_answer(answer)
        assert answer.num_reads - before <= 2


# -- bad words ----------------------------------------------------------------------------


VOCAB_SIZE = 3
WORD_TOKENS = st.integers(0, VOCAB_SIZE - 1)


def processor(words: list[list[int]], num_tokens: int) -> Any:
    """What one request adds; the method that makes it needs no state."""
    params = SamplingParams(extra_args={ANSWER_TOKENS_KEY: num_tokens})
    params._bad_words_token_ids = words
    return AnswerBadWords.new_req_logits_processor(object.__new__(AnswerBadWords), params)


def masked(words: list[list[int]], answer: list[int]) -> torch.Tensor:
    """What vLLM makes of the logits behind an answer that one engine has sampled."""
    logits = torch.zeros(1, VOCAB_SIZE)
    apply_bad_words(logits, {0: words}, [answer])
    return logits


@given(
    st.lists(st.lists(WORD_TOKENS, min_size=2, max_size=4), min_size=1, max_size=3),
    st.lists(WORD_TOKENS, max_size=3),
    st.lists(WORD_TOKENS, min_size=1, max_size=4),
    st.lists(WORD_TOKENS, max_size=4),
)
def test_a_continued_answer_is_masked_as_one_that_was_never_interrupted(
    words: list[list[int]], prompt: list[int], before: list[int], since: list[int]
) -> None:
    logits = masked(words, since)
    processor(words, len(before))([*prompt, *before], since, logits[0])
    assert torch.equal(logits, masked(words, before + since))


@pytest.mark.parametrize(("words", "num_tokens"), [([[1]], 1), ([], 1), ([[1, 2]], 0)])
def test_what_vllm_finds_itself_needs_nothing(words: list[list[int]], num_tokens: int) -> None:
    assert processor(words, num_tokens) is None
