"""Makes presence and frequency penalties count the first token.

The prefill engine samples an answer's first token, which then stands in the decode
engine's prompt, where those two penalties do not look. This logits processor adds
the missing part:

- frequency: the first token's count is one higher than vLLM knows;
- presence: the first token is present although vLLM has not seen it sampled.

vLLM applies it before its own penalties, of which the repetition penalty is a
multiplication that always applies to the first token, since it is in the prompt.
So the offset is chosen such that the result is exactly lower by the missing
penalty (with r the repetition penalty, R(x) = x / r for x > 0, x * r else:
x' = R^-1(R(x) - missing)).

Runs inside the decode engine's worker process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

# Key of the first token's id in SamplingParams.extra_args.
FIRST_TOKEN_KEY = "stream2llm_first_token_id"


def missing_penalty(presence: float, frequency: float, *, sampled_again: bool) -> float:
    """Returns what vLLM's own penalties lack for the first token.

    `sampled_again`: the decode engine has sampled it too, so vLLM counts its presence.
    """
    return frequency + (0.0 if sampled_again else presence)


def offset_before_repetition(logit: float, missing: float, repetition: float) -> float:
    """Returns the logit that the repetition penalty turns into `R(logit) - missing`."""
    wanted = (logit / repetition if logit > 0 else logit * repetition) - missing
    return wanted * repetition if wanted > 0 else wanted / repetition


class SampledAgain:
    """Finds a token in a growing answer without reading all of it at each step.

    Each token is read once. vLLM puts -1 where a step's token is not known yet and
    replaces it later, so reading resumes at the first -1. A step adds one token, and
    may take back the last ones before it.
    """

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id
        # Number of tokens read from the start, and the last of them, the only one that
        # may be the token.
        self._num_read = 0
        self._last_read = -1

    def in_answer(self, token_ids: Sequence[int]) -> bool:
        """Equals `token_id in token_ids` for the answer at each step."""
        if self._num_read and not self._is_as_it_was(token_ids):
            self._num_read, self._last_read = 0, -1
        if self._last_read == self._token_id:
            return True
        for position in range(self._num_read, len(token_ids)):
            token_id = token_ids[position]
            if token_id < 0:
                return self._token_id in token_ids[position:]
            self._num_read, self._last_read = position + 1, token_id
            if token_id == self._token_id:
                return True
        return False

    def _is_as_it_was(self, token_ids: Sequence[int]) -> bool:
        """Whether the tokens read so far are still a prefix of the answer."""
        is_long_enough = len(token_ids) >= self._num_read
        return is_long_enough and token_ids[self._num_read - 1] == self._last_read


class FirstTokenPenalty(AdapterLogitsProcessor):
    """Applies `missing_penalty` to requests that have presence or frequency penalties."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        """Returns the processor of one request, None when it needs none."""
        first = (params.extra_args or {}).get(FIRST_TOKEN_KEY)
        if first is None or not (params.presence_penalty or params.frequency_penalty):
            return None
        sampled = SampledAgain(first)

        def apply(output_token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            missing = missing_penalty(
                params.presence_penalty,
                params.frequency_penalty,
                sampled_again=sampled.in_answer(output_token_ids),
            )
            offset = offset_before_repetition(
                float(logits[first]), missing, params.repetition_penalty
            )
            # A value beyond the range of the logits' type would raise, and end the engine.
            largest = torch.finfo(logits.dtype).max
            logits[first] = min(max(offset, -largest), largest)
            return logits

        return apply
