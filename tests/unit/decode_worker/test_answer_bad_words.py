"""Bad words that begin among the answer's tokens in the prompt are found as any others."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.v1.sample.ops.bad_words import apply_bad_words

from stream2llm.engine.answer_bad_words import AnswerBadWords
from stream2llm.engine.answer_penalty import ANSWER_TOKENS_KEY

pytestmark = pytest.mark.unit
VOCAB_SIZE = 3
TOKENS = st.integers(0, VOCAB_SIZE - 1)


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
    st.lists(st.lists(TOKENS, min_size=2, max_size=4), min_size=1, max_size=3),
    st.lists(TOKENS, max_size=3),
    st.lists(TOKENS, min_size=1, max_size=4),
    st.lists(TOKENS, max_size=4),
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
