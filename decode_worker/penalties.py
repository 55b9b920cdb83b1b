"""Makes presence and frequency penalties count the first token.

The first token of an answer was sampled by the prefill engine and stands in
the decode engine's prompt, where those two penalties do not look. This logits
processor adds what is missing:

- frequency: the first token's count is one higher than vLLM knows;
- presence: the first token is present although vLLM has not seen it sampled.

vLLM applies it before its own penalties, of which the repetition penalty is a
multiplication. The first token is in the prompt, so that one always hits it;
the offset is put in such that what comes out after it is exactly lower by the
missing penalty (with r the repetition penalty, R(x) = x / r for x > 0, x * r
else: x' = R^-1(R(x) - missing)).

Runs inside the decode engine's worker process.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

# Key of the first token's id in SamplingParams.extra_args.
FIRST_TOKEN_KEY = "stream2llm_first_token_id"


def missing_penalty(presence: float, frequency: float, *, sampled_again: bool) -> float:
    """What vLLM's own penalties lack for the first token.

    `sampled_again`: the decode engine has sampled it too, so that its presence
    is counted already.
    """
    return frequency + (0.0 if sampled_again else presence)


def offset_before_repetition(logit: float, missing: float, repetition: float) -> float:
    """The logit that the repetition penalty turns into `R(logit) - missing`."""
    wanted = (logit / repetition if logit > 0 else logit * repetition) - missing
    return wanted * repetition if wanted > 0 else wanted / repetition


class FirstTokenPenalty(AdapterLogitsProcessor):
    """Applies `missing_penalty` to requests that have presence or frequency penalties."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        """The processor of one request, None when it needs none."""
        first = (params.extra_args or {}).get(FIRST_TOKEN_KEY)
        if first is None or not (params.presence_penalty or params.frequency_penalty):
            return None

        def apply(output_token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            missing = missing_penalty(
                params.presence_penalty,
                params.frequency_penalty,
                sampled_again=first in output_token_ids,
            )
            offset = offset_before_repetition(
                float(logits[first]), missing, params.repetition_penalty
            )
            # A value that the logits' type cannot hold would raise, and end the engine.
            largest = torch.finfo(logits.dtype).max
            logits[first] = min(max(offset, -largest), largest)
            return logits

        return apply
