"""Protobuf messages to domain values and back: what router and workers share.

The only leaf that imports both; everything that is said to clients alone is in
`router/translate.py`.
"""

from __future__ import annotations

from typing import Any

from stream2llm.api.delay import DelayReason
from stream2llm.api.handover import HandoverMode
from stream2llm.api.ordering import DocumentOrdering, bad_ordering
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.text_options import ControlTokens, OversizedDocuments, bad_option
from stream2llm.api.token_step import FinishReason, Logprob, TokenLogprobs, TokenStep
from stream2llm.api.v1 import inference_pb2, worker_pb2

_OPTIONAL_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
)

_REASONS: dict[FinishReason, Any] = {
    FinishReason.STOP_TOKEN: inference_pb2.FINISH_REASON_STOP_TOKEN,
    FinishReason.STOP_STRING: inference_pb2.FINISH_REASON_STOP_STRING,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}
_DELAYS: dict[DelayReason, Any] = {
    DelayReason.KV_MEMORY: inference_pb2.DELAY_REASON_KV_MEMORY,
    DelayReason.KV_LEASED: inference_pb2.DELAY_REASON_KV_LEASED,
}
_HANDOVERS: dict[HandoverMode, Any] = {
    "at_seal": inference_pb2.HANDOVER_MODE_AT_SEAL,
    "streamed": inference_pb2.HANDOVER_MODE_STREAMED,
}
_HANDOVERS_BACK = {number: mode for mode, number in _HANDOVERS.items()}
_ORDERINGS: dict[DocumentOrdering, Any] = {
    DocumentOrdering.AS_GIVEN: inference_pb2.DOCUMENT_ORDERING_AS_GIVEN,
    DocumentOrdering.STABLE: inference_pb2.DOCUMENT_ORDERING_STABLE,
}
_ORDERINGS_BACK = {number: ordering for ordering, number in _ORDERINGS.items()}
_CONTROL_TOKENS: dict[ControlTokens, Any] = {
    ControlTokens.NONE: inference_pb2.CONTROL_TOKENS_NONE,
    ControlTokens.TEMPLATE: inference_pb2.CONTROL_TOKENS_TEMPLATE,
    ControlTokens.ALL: inference_pb2.CONTROL_TOKENS_ALL,
}
_CONTROL_TOKENS_BACK = {number: option for option, number in _CONTROL_TOKENS.items()}
_OVERSIZED: dict[OversizedDocuments, Any] = {
    OversizedDocuments.FAIL: inference_pb2.OVERSIZED_DOCUMENTS_FAIL,
    OversizedDocuments.REFUSE: inference_pb2.OVERSIZED_DOCUMENTS_REFUSE,
    OversizedDocuments.CUT: inference_pb2.OVERSIZED_DOCUMENTS_CUT,
}
_OVERSIZED_BACK = {number: option for option, number in _OVERSIZED.items()}
_DELAYS_BACK = {number: delay for delay, number in _DELAYS.items()}
_REASONS_BACK = {number: reason for reason, number in _REASONS.items()}


def from_proto(message: inference_pb2.SamplingParameters) -> SamplingParameters:
    """Sampling parameters; unset fields get the domain's defaults."""
    given: dict[str, Any] = {
        name: getattr(message, name) for name in _OPTIONAL_SAMPLING if message.HasField(name)
    }
    return SamplingParameters(
        stop_strings=tuple(message.stop_strings),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        **given,
    )


def to_proto(sampling: SamplingParameters) -> inference_pb2.SamplingParameters:
    """The message that `from_proto` reads back to an equal value."""
    return inference_pb2.SamplingParameters(**sampling_fields(sampling))


def sampling_fields(sampling: SamplingParameters) -> dict[str, Any]:
    """The fields of the message that are set, by name."""
    given = {name: getattr(sampling, name) for name in _OPTIONAL_SAMPLING}
    return {
        "stop_strings": sampling.stop_strings,
        "stop_token_ids": sampling.stop_token_ids,
        "ignore_eos": sampling.ignore_eos,
        **{name: value for name, value in given.items() if value is not None},
    }


def ordering_to_proto(ordering: DocumentOrdering) -> Any:
    """The enum's number."""
    return _ORDERINGS[ordering]


def ordering_from_proto(number: int) -> DocumentOrdering:
    """Unspecified is as given; raises InvalidRequestError for an unknown number."""
    if number == inference_pb2.DOCUMENT_ORDERING_UNSPECIFIED:
        return DocumentOrdering.AS_GIVEN
    if number not in _ORDERINGS_BACK:
        raise bad_ordering(number)
    return _ORDERINGS_BACK[number]


def control_tokens_to_proto(option: ControlTokens) -> Any:
    """The enum's number."""
    return _CONTROL_TOKENS[option]


def control_tokens_from_proto(number: int) -> ControlTokens:
    """Unspecified is none; raises InvalidRequestError for an unknown number."""
    if number == inference_pb2.CONTROL_TOKENS_UNSPECIFIED:
        return ControlTokens.NONE
    if number not in _CONTROL_TOKENS_BACK:
        raise bad_option(ControlTokens, number)
    return _CONTROL_TOKENS_BACK[number]


def oversized_to_proto(option: OversizedDocuments) -> Any:
    """The enum's number."""
    return _OVERSIZED[option]


def oversized_from_proto(number: int) -> OversizedDocuments:
    """Unspecified is fail; raises InvalidRequestError for an unknown number."""
    if number == inference_pb2.OVERSIZED_DOCUMENTS_UNSPECIFIED:
        return OversizedDocuments.FAIL
    if number not in _OVERSIZED_BACK:
        raise bad_option(OversizedDocuments, number)
    return _OVERSIZED_BACK[number]


def finish_reason_to_proto(reason: FinishReason | None) -> Any:
    """The enum's number; unspecified while the answer goes on."""
    if reason is None:
        return inference_pb2.FINISH_REASON_UNSPECIFIED
    return _REASONS[reason]


def finish_reason_from_proto(number: int) -> FinishReason | None:
    """None for unspecified; KeyError-free, an unknown number is a ValueError."""
    if number == inference_pb2.FINISH_REASON_UNSPECIFIED:
        return None
    if number not in _REASONS_BACK:
        raise ValueError(f"unknown finish reason {number}")
    return _REASONS_BACK[number]


def delay_to_proto(delay: DelayReason | None) -> Any:
    """The enum's number; unspecified when nothing is short."""
    return inference_pb2.DELAY_REASON_UNSPECIFIED if delay is None else _DELAYS[delay]


def delay_from_proto(number: int) -> DelayReason | None:
    """None for unspecified, and for what a newer server may say: it is only a hint."""
    return _DELAYS_BACK.get(number)


def token_step_from_proto(message: worker_pb2.TokenStep) -> TokenStep:
    """A step as a worker sent it."""
    return TokenStep(
        token_ids=tuple(message.token_ids),
        logprobs=tuple(_token_logprobs_from_proto(item) for item in message.logprobs),
        finish_reason=finish_reason_from_proto(message.finish_reason),
        stop_token_id=message.stop_token_id if message.HasField("stop_token_id") else None,
    )


def token_step_to_proto(step: TokenStep) -> worker_pb2.TokenStep:
    """A step as a worker sends it."""
    return worker_pb2.TokenStep(
        token_ids=step.token_ids,
        logprobs=[token_logprobs_to_proto(item) for item in step.logprobs],
        finish_reason=finish_reason_to_proto(step.finish_reason),
        stop_token_id=step.stop_token_id,
    )


def token_logprobs_to_proto(item: TokenLogprobs) -> inference_pb2.TokenLogprobs:
    """The log-probabilities at one position."""
    return inference_pb2.TokenLogprobs(
        sampled=_logprob_to_proto(item.sampled),
        top=[_logprob_to_proto(candidate) for candidate in item.top],
    )


def _token_logprobs_from_proto(message: inference_pb2.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(
        sampled=_logprob_from_proto(message.sampled),
        top=tuple(_logprob_from_proto(candidate) for candidate in message.top),
    )


def _logprob_to_proto(item: Logprob) -> inference_pb2.Logprob:
    return inference_pb2.Logprob(
        token_id=item.token_id, logprob=item.logprob, rank=item.rank, text=item.text
    )


def _logprob_from_proto(message: inference_pb2.Logprob) -> Logprob:
    return Logprob(message.token_id, message.logprob, message.rank, message.text)


def handover_to_proto(mode: HandoverMode | None) -> Any:
    """The enum value; None is unspecified."""
    return inference_pb2.HANDOVER_MODE_UNSPECIFIED if mode is None else _HANDOVERS[mode]


def handover_from_proto(number: Any) -> HandoverMode | None:
    """The inverse; a value this version does not know is left to the cluster."""
    return _HANDOVERS_BACK.get(number)
