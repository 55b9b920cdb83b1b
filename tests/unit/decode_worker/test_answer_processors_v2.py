"""What vLLM's model runner V2 makes of an answer that began elsewhere, step by step."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.v1.sample.ops.bad_words import apply_bad_words
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

from stream2llm.engine.answer_penalty import ANSWER_TOKENS_KEY
from stream2llm.engine.answer_processors_v2 import AnswerBadWords, AnswerPenalty

pytestmark = pytest.mark.unit
VOCAB_SIZE = 6
MAX_MODEL_LEN = 64
SLOT = 1
TOKENS = st.integers(0, VOCAB_SIZE - 1)
NO_DRAFTS: Any = SimpleNamespace(speculative_config=None)


def slots() -> LogitsProcRequestState:
    """Two slots, as the model runner has them; the tests' requests are in the second."""
    on_host: Any = {
        name: SimpleNamespace(np=np.zeros(2, dtype=np.int32))
        for name in ("prompt_len", "prefill_len", "total_len")
    }
    tokens: Any = SimpleNamespace(gpu=torch.zeros(2, MAX_MODEL_LEN, dtype=torch.int32))
    cpu = torch.device("cpu")
    return LogitsProcRequestState(cpu, 2, VOCAB_SIZE, all_token_ids=tokens, **on_host)


def announce(
    processor: Any,
    states: LogitsProcRequestState,
    params: SamplingParams,
    prompt: list[int],
    sampled: list[int],
) -> bool:
    """A request comes, perhaps after vLLM had preempted it; returns whether it is changed."""
    tokens = [*prompt, *sampled]
    states.prompt_len.np[SLOT], states.prefill_len.np[SLOT] = len(prompt), len(tokens)
    states.all_token_ids.gpu[SLOT, : len(tokens)] = torch.tensor(tokens)
    is_changed: bool = processor.add_request(SLOT, params)
    return is_changed


def step(
    processor: Any, states: LogitsProcRequestState, num_tokens: int, logits: torch.Tensor
) -> torch.Tensor:
    """One step that computes the last of `num_tokens` tokens; the other slot's row is first."""
    rows = torch.zeros(2, VOCAB_SIZE)
    rows[1] = logits
    last = states.all_token_ids.gpu[SLOT, num_tokens - 1]
    slots_of_rows = torch.tensor([0, SLOT])
    context = LogitsContext(
        expanded_idx_mapping=slots_of_rows,
        idx_mapping=slots_of_rows,
        idx_mapping_np=slots_of_rows.numpy(),
        expanded_local_pos=torch.zeros(2, dtype=torch.int32),
        input_ids=torch.stack([torch.tensor(0, dtype=torch.int32), last]),
        pos=torch.tensor([0, num_tokens - 1]),
        seq_lens_upper_bound_np=np.array([1, num_tokens], dtype=np.int32),
    )
    processor.apply(rows, context)
    assert not rows[0].any(), "the other request's logits are changed"
    return rows[1]


@given(
    st.lists(TOKENS, min_size=1, max_size=8),
    st.lists(TOKENS, max_size=8),
    st.integers(0, 8),
    st.floats(-2, 2, width=32),
    st.floats(-2, 2, width=32),
)
def test_a_continued_answer_is_penalised_as_one_that_was_never_interrupted(
    before: list[int], since: list[int], num_preempted: int, presence: float, frequency: float
) -> None:
    """`before` is in the prompt, behind other tokens; vLLM's own penalties count `since`."""
    states = slots()
    processor = AnswerPenalty(NO_DRAFTS, states)
    params = SamplingParams(
        presence_penalty=presence,
        frequency_penalty=frequency,
        extra_args={ANSWER_TOKENS_KEY: len(before)},
    )
    prompt = [0, 1, 2, *before]
    is_changed = announce(processor, states, params, prompt, since[:num_preempted])
    assert is_changed == bool(presence or frequency)
    logits = torch.linspace(-1, 1, VOCAB_SIZE)
    for num_sampled in range(len(since[:num_preempted]), len(since) + 1):
        sampled = since[:num_sampled]
        if sampled:
            states.all_token_ids.gpu[SLOT, len(prompt) + num_sampled - 1] = sampled[-1]
        changed = step(processor, states, len(prompt) + num_sampled, logits).tolist()
        own, whole = Counter(sampled), Counter(before + sampled)
        for token in range(VOCAB_SIZE):
            by_vllm = frequency * own[token] + presence * (own[token] > 0)
            wanted = frequency * whole[token] + presence * (whole[token] > 0)
            expected = float(logits[token]) - wanted
            assert changed[token] - by_vllm == pytest.approx(expected, abs=1e-4)


def test_a_step_inside_the_prompt_counts_nothing_as_sampled() -> None:
    states = slots()
    processor = AnswerPenalty(NO_DRAFTS, states)
    params = SamplingParams(presence_penalty=1.0, extra_args={ANSWER_TOKENS_KEY: 1})
    announce(processor, states, params, [4, 2, 4], [])
    step(processor, states, 1, torch.zeros(VOCAB_SIZE))  # it has computed the first 4
    assert step(processor, states, 3, torch.zeros(VOCAB_SIZE))[4] == -1.0


@given(
    st.lists(st.lists(TOKENS, min_size=2, max_size=4), min_size=1, max_size=3),
    st.lists(TOKENS, max_size=3),
    st.lists(TOKENS, min_size=1, max_size=4),
    st.lists(TOKENS, max_size=4),
)
def test_a_continued_answer_is_masked_as_one_that_was_never_interrupted(
    words: list[list[int]], prompt: list[int], before: list[int], since: list[int]
) -> None:
    states = slots()
    processor = AnswerBadWords(NO_DRAFTS, states)
    params = SamplingParams(extra_args={ANSWER_TOKENS_KEY: len(before)})
    params._bad_words_token_ids = words
    assert announce(processor, states, params, [*prompt, *before], since)
    by_vllm = torch.zeros(1, VOCAB_SIZE)
    apply_bad_words(by_vllm, {0: words}, [since])
    wanted = torch.zeros(1, VOCAB_SIZE)
    apply_bad_words(wanted, {0: words}, [before + since])
    num_tokens = len(prompt) + len(before) + len(since)
    assert torch.equal(step(processor, states, num_tokens, by_vllm[0]), wanted[0])


def test_the_next_request_of_a_slot_is_left_alone() -> None:
    states = slots()
    processor = AnswerPenalty(NO_DRAFTS, states)
    penalised = SamplingParams(presence_penalty=1.0, extra_args={ANSWER_TOKENS_KEY: 1})
    assert announce(processor, states, penalised, [1, 2], [])
    assert not announce(processor, states, SamplingParams(presence_penalty=1.0), [1, 2], [])
    assert not step(processor, states, 2, torch.zeros(VOCAB_SIZE)).any()


def test_drafted_tokens_are_refused() -> None:
    drafts: Any = SimpleNamespace(speculative_config=object())
    with pytest.raises(ValueError, match="speculative_config"):
        AnswerPenalty(drafts, slots())
