"""Makes presence and frequency penalties count the tokens of the answer in the prompt.

vLLM counts the tokens that this engine has sampled. But the first token of an answer comes
from the prefill engine and stands in the decode engine's prompt; and when an answer goes
on after a lost worker, all of it so far stands in the prompt of both. This logits
processor adds the missing part for the last tokens of the prompt:

- frequency: their counts are higher than vLLM knows;
- presence: they are present although vLLM has not seen them sampled.

vLLM applies it before its own penalties, of which the repetition penalty is a
multiplication that always applies to these tokens, since they are in the prompt.
So the offset is chosen such that the result is exactly lower by the missing
penalty (with r the repetition penalty, R(x) = x / r for x > 0, x * r else:
x' = R^-1(R(x) - missing)).

Runs inside the engine's worker process, with vLLM's model runner V1; answer_processors_v2.py
has that for V2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

# Key in SamplingParams.extra_args: how many tokens at the end of the prompt are the answer's.
ANSWER_TOKENS_KEY = "stream2llm_answer_tokens"


def num_answer_tokens(params: SamplingParams) -> int:
    """Returns how many tokens at the end of a request's prompt are the answer's."""
    num_tokens: int = (params.extra_args or {}).get(ANSWER_TOKENS_KEY, 0)
    return num_tokens


def missing_penalty(presence: float, frequency: float, count: int, *, sampled_again: bool) -> float:
    """Returns what vLLM's own penalties lack for a token that the prompt's answer has `count` times.

    `sampled_again`: this engine has sampled it too, so vLLM counts its presence.
    """
    return frequency * count + (0.0 if sampled_again else presence)


def before_repetition(
    logits: torch.Tensor, missing: torch.Tensor, repetition: float
) -> torch.Tensor:
    """Returns the logits that the repetition penalty turns into `R(logits) - missing`."""
    wanted = torch.where(logits > 0, logits / repetition, logits * repetition) - missing
    offset = torch.where(wanted > 0, wanted * repetition, wanted / repetition)
    # A value beyond the range of the logits' type would raise, and end the engine.
    largest = torch.finfo(logits.dtype).max
    return offset.clamp(-largest, largest)


class SampledAgain:
    """Finds which of some tokens a growing answer has, without reading all of it at each step.

    Each token is read once. vLLM puts -1 where a step's token is not known yet and
    replaces it later, so reading resumes at the first -1. A step adds one token, and
    may take back the last ones before it.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._wanted = frozenset(token_ids)
        # How many tokens were read from the start, and where each wanted one stood first.
        self._num_read = 0
        self._last_read = -1
        self._first_at: dict[int, int] = {}

    def in_answer(self, token_ids: Sequence[int]) -> frozenset[int]:
        """Equals the wanted tokens that are in `token_ids`, for the answer at each step."""
        if self._num_read and not self._is_as_it_was(token_ids):
            self._num_read, self._last_read = 0, -1
            self._first_at.clear()
        for position in range(self._num_read, len(token_ids)):
            token_id = token_ids[position]
            if token_id < 0:
                rest = self._wanted.intersection(token_ids[position:])
                return rest.union(self._first_at)
            self._num_read, self._last_read = position + 1, token_id
            if token_id in self._wanted:
                self._first_at.setdefault(token_id, position)
        return frozenset(self._first_at)

    def _is_as_it_was(self, token_ids: Sequence[int]) -> bool:
        """Whether the tokens read so far are still a prefix of the answer."""
        is_long_enough = len(token_ids) >= self._num_read
        return is_long_enough and token_ids[self._num_read - 1] == self._last_read


class AnswerPenalty(AdapterLogitsProcessor):
    """Applies `missing_penalty` to requests that have presence or frequency penalties."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        """Returns the processor of one request, None when it needs none."""
        num_tokens = num_answer_tokens(params)
        if not num_tokens or not (params.presence_penalty or params.frequency_penalty):
            return None
        return _Processor(params, num_tokens).apply


class _Processor:
    """The penalties of one request."""

    def __init__(self, params: SamplingParams, num_tokens: int) -> None:
        self._params = params
        self._num_tokens = num_tokens
        # Set at the first step, which brings the prompt.
        self._counts: dict[int, int] = {}
        self._sampled = SampledAgain(())
        self._at = torch.tensor([])
        # What the tokens at `_at` lack, while those in `_again` are the ones that were sampled again.
        self._missing = torch.tensor([])
        self._again: frozenset[int] | None = None

    def apply(
        self, prompt_token_ids: list[int], output_token_ids: list[int], logits: torch.Tensor
    ) -> torch.Tensor:
        """Changes the logits of the answer's tokens in the prompt, in place."""
        if not self._counts:
            self._counts = Counter(int(each) for each in prompt_token_ids[-self._num_tokens :])
            self._sampled = SampledAgain(tuple(self._counts))
            self._at = torch.tensor(list(self._counts), device=logits.device)
        again = self._sampled.in_answer(output_token_ids)
        if again != self._again:
            self._again, self._missing = again, self._missing_with(again, logits)
        repetition = self._params.repetition_penalty
        logits[self._at] = before_repetition(logits[self._at], self._missing, repetition)
        return logits

    def _missing_with(self, again: frozenset[int], logits: torch.Tensor) -> torch.Tensor:
        presence, frequency = self._params.presence_penalty, self._params.frequency_penalty
        missing = [
            missing_penalty(presence, frequency, count, sampled_again=token_id in again)
            for token_id, count in self._counts.items()
        ]
        return torch.tensor(missing, device=logits.device, dtype=logits.dtype)
