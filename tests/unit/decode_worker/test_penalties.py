"""The first token counts in the penalties, exactly."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams

from decode_worker.penalties import (
    FIRST_TOKEN_KEY,
    FirstTokenPenalty,
    SampledAgain,
    missing_penalty,
    offset_before_repetition,
)

pytestmark = pytest.mark.unit


def repetition(logit: float, penalty: float) -> float:
    """vLLM's repetition penalty."""
    return logit / penalty if logit > 0 else logit * penalty


@pytest.mark.parametrize("logit", [-3.0, -0.1, 0.0, 0.1, 5.0])
@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("missing", [-1.5, 0.0, 0.3, 2.0])
def test_after_the_repetition_penalty_just_the_missing_penalty_is_gone(
    logit: float, penalty: float, missing: float
) -> None:
    offset = offset_before_repetition(logit, missing, penalty)
    assert repetition(offset, penalty) == pytest.approx(repetition(logit, penalty) - missing)


def test_a_value_beyond_the_logits_type_is_cut_instead_of_raising() -> None:
    params = SamplingParams(
        presence_penalty=2.0,
        repetition_penalty=1e-40,
        extra_args={FIRST_TOKEN_KEY: 1},
    )
    # Only the method that makes the processor is asked; it needs no state.
    make = FirstTokenPenalty.new_req_logits_processor
    logits = make(object.__new__(FirstTokenPenalty), params)([], torch.zeros(3))
    assert logits[1] == torch.finfo(torch.float32).min
    assert torch.isfinite(logits).all()


def test_presence_is_missing_until_decode_samples_the_token_itself() -> None:
    assert missing_penalty(0.5, 0.2, sampled_again=False) == pytest.approx(0.7)
    assert missing_penalty(0.5, 0.2, sampled_again=True) == pytest.approx(0.2)


TOKENS = st.integers(0, 4)
# A step: so many of the last tokens are taken back, placeholders become tokens or not, one comes.
STEPS = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(-1, 4)), max_size=40)


@given(TOKENS, st.lists(TOKENS, max_size=5), STEPS)
def test_the_token_is_found_as_if_the_whole_answer_were_read(
    token: int, answer: list[int], steps: list[tuple[int, bool, int]]
) -> None:
    sampled = SampledAgain(token)
    assert sampled.in_answer(answer) == (token in answer)
    for num_taken_back, is_known, new in steps:
        if is_known:
            answer[:] = [(place * 7) % 5 if each < 0 else each for place, each in enumerate(answer)]
        del answer[max(len(answer) - num_taken_back, 0) :]
        answer.append(new)
        assert sampled.in_answer(answer) == (token in answer)


class CountedReads(list[int]):
    """An answer that counts how often one of its tokens is read."""

    num_reads = 0

    def __getitem__(self, place: object) -> object:  # type: ignore[override]
        self.num_reads += 1
        return super().__getitem__(place)  # type: ignore[index]

    def __contains__(self, token: object) -> bool:
        raise AssertionError("reads all of it")


def test_a_step_reads_a_bounded_number_of_tokens() -> None:
    sampled, answer = SampledAgain(1), CountedReads()
    for _ in range(1000):
        answer.append(2)
        before = answer.num_reads
        assert not sampled.in_answer(answer)
        assert answer.num_reads - before <= 2
