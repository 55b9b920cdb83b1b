"""Makes bad words find the tokens of the answer in the prompt.

vLLM looks for the beginning of a bad word among the tokens that this engine has sampled.
But the first token of an answer, or all of one that goes on after a lost worker, stands
in the prompt (answer_penalty.py). This logits processor adds the words that begin
there, until the engine has sampled more tokens than such a word can have.

Runs inside the engine's worker process, with vLLM's model runner V1; answer_processors_v2.py
has that for V2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from stream2llm.engine.answer_penalty import num_answer_tokens


def completed_by(
    words: Sequence[Sequence[int]], before: Sequence[int], sampled: Sequence[int]
) -> list[int]:
    """Returns the tokens that would complete a word that begins in `before`, behind `sampled`."""
    answer = [*before, *sampled]
    return [
        word[-1]
        for word in words
        if len(sampled) < len(word) - 1 <= len(answer)
        and answer[len(answer) - len(word) + 1 :] == list(word[:-1])
    ]


def longer_words(params: SamplingParams) -> list[list[int]]:
    """Returns a request's bad words that have a beginning: vLLM finds single tokens itself."""
    return [word for word in params.bad_words_token_ids or () if len(word) > 1]


class AnswerBadWords(AdapterLogitsProcessor):
    """Masks the tokens of `completed_by`."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        """Returns the processor of one request, None when it needs none."""
        words, num_tokens = longer_words(params), num_answer_tokens(params)
        return _Processor(words, num_tokens).apply if num_tokens and words else None


class _Processor:
    """Masks the bad words of one request."""

    def __init__(self, words: list[list[int]], num_tokens: int) -> None:
        self._words = words
        # So many tokens of a word at most stand before the one that completes it.
        self._most_before = max(map(len, words)) - 1
        self._num_tokens = num_tokens

    def apply(
        self, prompt_token_ids: list[int], output_token_ids: list[int], logits: torch.Tensor
    ) -> torch.Tensor:
        """Changes the logits of the tokens that would complete a word, in place."""
        if len(output_token_ids) < self._most_before:
            num_before = min(self._num_tokens, self._most_before)
            before = [int(each) for each in prompt_token_ids[-num_before:]]
            for token_id in completed_by(self._words, before, output_token_ids):
                logits[token_id] = -torch.inf
        return logits
