"""Translates our sampling parameters to vLLM's, and vLLM's token outputs to ours.

Workers take and return token ids only: text and stop strings belong to the router.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.logprobs import Logprob as VllmLogprob
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind

from stream2llm.api.errors import (
    InternalError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from stream2llm.api.sampling import BadWord, SamplingParameters
from stream2llm.api.structured_output import refused
from stream2llm.api.token_step import FinishReason, Logprob, TokenLogprobs, TokenStep
from stream2llm.engine.failed_request import (
    BAD_GRAMMAR,
    BUSY_GRAMMARS,
    FAILED_GRAMMAR,
    FAILED_REQUEST,
)
from stream2llm.engine.vllm_constraint import vllm_constraint

_MASK_64 = 2**64 - 1


class EngineSeed(IntEnum):
    """Distinguishes the random numbers of the two engines."""

    PREFILL = 1
    DECODE = 2


_FINISH_REASONS = {None: None, "stop": FinishReason.STOP_TOKEN, "length": FinishReason.LENGTH}


def to_vllm(
    params: SamplingParameters,
    *,
    max_tokens: int,
    seed: int | None,
    extra_args: dict[str, Any] | None = None,
    answer_tokens: int = 0,
) -> SamplingParams:
    """Returns vLLM's parameters for one of the two engines that generate an answer.

    It has `answer_tokens` tokens before this engine adds at most `max_tokens`. Raises
    InvalidRequestError when vLLM refuses them.
    """
    constraint = params.structured_output
    try:
        result = SamplingParams(
            max_tokens=max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=seed,
            stop_token_ids=list(params.stop_token_ids),
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            logprobs=params.logprobs,
            ignore_eos=params.ignore_eos,
            min_tokens=min_tokens_left(params, max_tokens, answer_tokens),
            min_p=params.min_p,
            logit_bias=dict(params.logit_bias) or None,
            structured_outputs=None if constraint is None else vllm_constraint(constraint),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=extra_args,
        )
    except (VLLMClientError, ValueError) as error:
        raise InvalidRequestError(f"sampling: {error}", field="sampling") from error
    # vLLM would make them of texts, for which it needs the tokenizer.
    result._bad_words_token_ids = [_token_ids(word) for word in params.bad_words] or None
    return result


def min_tokens_left(params: SamplingParameters, max_tokens: int, answer_tokens: int) -> int:
    """Returns how many tokens an engine adds before it may end an answer of `answer_tokens`.

    vLLM takes no more than the `max_tokens` that the engine adds at all.
    """
    return min(max(params.min_tokens - answer_tokens, 0), max_tokens)


def _token_ids(word: BadWord) -> list[int]:
    if isinstance(word, str):
        field = "sampling.bad_words"
        raise InvalidRequestError(f"{field} has a text; engines take token ids", field=field)
    return list(word)


def engine_seed(seed: int | None, engine: EngineSeed, num_before: int = 0) -> int | None:
    """Derives one engine's seed from the client's.

    Both engines start their own generator; with one seed for both, the second token would
    be drawn with the random numbers of the first. So would those behind a restart, when other
    engines sampled the `num_before` tokens that an undisturbed answer gets here. Besides, vLLM takes -1 for "no seed",
    and torch no negative ones. SplitMix64's finalizer (Steele, Lea, Flood 2014) is a
    bijection of 64 bits, of which one is dropped.
    """
    if seed is None:
        return None
    stream = engine + num_before * len(EngineSeed)
    mixed = (seed + stream * 0x9E3779B97F4A7C15) & _MASK_64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return (mixed ^ (mixed >> 31)) >> 1


def token_step(output: CompletionOutput, num_logprobs: int | None) -> TokenStep:
    """Translates one output of an engine, with the `num_logprobs` likeliest tokens.

    Raises UnavailableError when the engine aborted the request.
    """
    raise_failure(output)
    return TokenStep(
        token_ids=tuple(output.token_ids),
        logprobs=_logprobs(output, num_logprobs or 0),
        finish_reason=_FINISH_REASONS[output.finish_reason],
        stop_token_id=_stop_token(output) if output.finish_reason == "stop" else None,
    )


def raise_failure(output: CompletionOutput) -> None:
    """Raises the error for the client when an output says that its request has failed."""
    if output.finish_reason not in _FINISH_REASONS:
        raise _given_up(output)


def _stop_token(output: CompletionOutput) -> int:
    # None means the model's own end-of-sequence token, the last one sampled.
    return output.stop_reason if isinstance(output.stop_reason, int) else output.token_ids[-1]


def _given_up(output: CompletionOutput) -> Exception:
    finish_reason, stop_reason = output.finish_reason, str(output.stop_reason)
    if finish_reason == "error" and stop_reason == FAILED_REQUEST:
        return InternalError("the engine could not handle the request; its log says why")
    if finish_reason == "error" and stop_reason == FAILED_GRAMMAR:
        return InternalError("the grammar of the structured output failed on the answer")
    if finish_reason == "error" and stop_reason == BUSY_GRAMMARS:
        return OverloadedError("the worker is busy compiling the structured outputs of others")
    if finish_reason == "error" and stop_reason.startswith(BAD_GRAMMAR):
        return refused(f"cannot be compiled: {stop_reason.removeprefix(BAD_GRAMMAR)}")
    if finish_reason == "error":
        return UnavailableError(
            "the KV cache of the prompt could not be fetched from the prefill worker",
            reason="KV_LOST",
        )
    if finish_reason == "abort":
        return UnavailableError("the engine aborted the request", reason="WORKER_LOST")
    return InternalError(f"unknown finish reason {finish_reason!r}")


def _logprobs(output: CompletionOutput, num_top: int) -> tuple[TokenLogprobs, ...]:
    if not output.logprobs:
        return ()
    pairs = zip(output.token_ids, output.logprobs, strict=True)
    return tuple(_position(token_id, at or {}, num_top) for token_id, at in pairs)


def _position(token_id: int, at: Mapping[int, VllmLogprob], num_top: int) -> TokenLogprobs:
    """vLLM lists the likeliest tokens and the sampled one, which may be among them."""
    entries = {i: Logprob(i, lp.logprob, lp.rank or 0) for i, lp in at.items()}
    likeliest = sorted(entries.values(), key=lambda entry: entry.rank)
    return TokenLogprobs(entries[token_id], tuple(e for e in likeliest if e.rank <= num_top))
