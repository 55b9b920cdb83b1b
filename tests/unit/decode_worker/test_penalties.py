"""The first token counts in the penalties, exactly."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

import torch
from vllm import SamplingParams

from decode_worker.penalties import (
    FIRST_TOKEN_KEY,
    FirstTokenPenalty,
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
