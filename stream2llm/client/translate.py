"""Between the client's values and protobuf messages; the only such place here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from stream2llm.api import arguments
from stream2llm.api import codec as wire
from stream2llm.api.errors import InternalError, OverloadedError
from stream2llm.api.handover import HANDOVER_MODES, HandoverMode
from stream2llm.api.sampling import SamplingParameters, bad_sampling
from stream2llm.api.text_options import ControlTokens, OversizedDocuments
from stream2llm.api.token_step import FinishReason, Logprob, TokenLogprobs
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client import events
from stream2llm.client.build import build
from stream2llm.client.inputs import (
    ChatMessage,
    ChatTemplate,
    Content,
    Document,
    MessageLike,
    Ordering,
    PlainTemplate,
    Prompt,
    chat_messages,
    content_of,
)

# -- client to server --------------------------------------------------------


def open_message(
    template: PlainTemplate | ChatTemplate,
    sampling: SamplingParameters | None,
    model: str,
    session_id: str,
    ordering: Ordering = Ordering(),  # noqa: B008 - a frozen value
    handover: HandoverMode | None = None,
    control_tokens: ControlTokens = ControlTokens.NONE,
    oversized_documents: OversizedDocuments = OversizedDocuments.FAIL,
) -> pb.OpenSession:
    """The first event of a session."""
    message = build(
        pb.OpenSession,
        "open",
        session_id=session_id,
        model=model,
        sampling=_sampling(sampling),
        handover=_handover(handover),
        ordering=wire.ordering_to_proto(ordering.ordering),
        ranking_note=ordering.ranking_note,
        control_tokens=wire.control_tokens_to_proto(control_tokens),
        oversized_documents=wire.oversized_to_proto(oversized_documents),
    )
    if isinstance(template, ChatTemplate):
        chat = build(pb.ChatTemplate, "open.chat", context_slot=template.context_slot)
        chat.messages.extend(_chat(template.messages))
        message.chat.CopyFrom(chat)
    else:
        message.plain.SetInParent()
        _put_content(message.plain.prefix, template.prefix, "open.plain.prefix")
        _put_content(message.plain.suffix, template.suffix, "open.plain.suffix")
    return message


def seal_message(suffix: Content | None) -> pb.SealContext:
    """The last event of a client; None leaves the suffix as it was given at the open."""
    message = pb.SealContext()
    if suffix is not None:
        _put_content(message.suffix, content_of(suffix, "seal.suffix"), "seal.suffix")
    return message


def document_messages(documents: Iterable[Document], field: str) -> list[pb.Document]:
    """Documents, in order; `field` is the name of the list."""
    return [_document(document, f"{field}[{index}]") for index, document in enumerate(documents)]


def generate_message(
    prompt: Prompt,
    sampling: SamplingParameters | None,
    model: str,
    session_id: str,
    control_tokens: ControlTokens = ControlTokens.NONE,
) -> pb.GenerateRequest:
    """A complete prompt: text, token ids or chat messages."""
    message = build(
        pb.GenerateRequest,
        "",
        session_id=session_id,
        model=model,
        sampling=_sampling(sampling),
        control_tokens=wire.control_tokens_to_proto(control_tokens),
    )
    if _is_chat(prompt):
        messages = chat_messages(cast("Sequence[MessageLike]", prompt))
        message.chat.CopyFrom(pb.ChatPrompt(messages=_chat(messages)))
    else:
        _put_content(message, content_of(prompt, "prompt"), "prompt")
    return message


def model_info_message(model: str) -> pb.GetModelInfoRequest:
    """Asks for a model by its name; empty is the only one."""
    return build(pb.GetModelInfoRequest, "", model=model)


def _is_chat(prompt: object) -> bool:
    if isinstance(prompt, list | tuple) and prompt:
        return isinstance(prompt[0], Mapping | ChatMessage)
    return isinstance(prompt, Mapping | ChatMessage)


def check_size(message: Message, limit_bytes: int) -> None:
    """Raises before gRPC would: it ends the whole RPC and does not say why."""
    size_bytes = message.ByteSize()
    if size_bytes > limit_bytes:
        error = OverloadedError(
            f"the message has {size_bytes} bytes, {limit_bytes} are allowed: "
            "send the documents in several appends",
            reason="MESSAGE_TOO_LARGE",
        )
        error.retry_after_s = None  # the same message can never pass
        raise error


def _document(document: Document, field: str) -> pb.Document:
    message = build(pb.Document, field, id=document.id, stays=document.stays)
    if document.content is not None:
        _put_content(message, document.content, f"{field}.content")
    return message


def _put_content(message: Any, content: Content, field: str) -> None:
    """Text or token ids into a message that has a field for each."""
    if isinstance(content, str):
        message.text = arguments.text(content, field)
    else:
        message.token_ids.SetInParent()  # an empty list is one, too
        message.token_ids.ids.extend(cast("Sequence[int]", content))


def _chat(messages: Iterable[ChatMessage]) -> list[pb.ChatMessage]:
    return [
        build(pb.ChatMessage, f"chat.messages[{index}]", role=message.role, content=message.content)
        for index, message in enumerate(messages)
    ]


def _sampling(sampling: SamplingParameters | None) -> pb.SamplingParameters:
    if sampling is None:
        return pb.SamplingParameters()
    if not isinstance(sampling, SamplingParameters):
        raise arguments.refused("sampling", sampling, "SamplingParameters")
    with bad_sampling():
        return build(pb.SamplingParameters, "sampling", **wire.sampling_fields(sampling))


def _handover(mode: HandoverMode | None) -> Any:
    if mode is not None and mode not in HANDOVER_MODES:
        raise arguments.refused("open.handover", mode, " or ".join(HANDOVER_MODES))
    return wire.handover_to_proto(mode)


# -- server to client --------------------------------------------------------


def event_from(message: pb.StreamGenerateResponse | pb.GenerateResponse) -> events.Event:
    """The typed event in a response; Generate has the first four."""
    kind = message.WhichOneof("event")
    if kind == "accepted":
        accepted = message.accepted
        return events.Accepted(accepted.session_id, accepted.model, accepted.credit_tokens)
    if kind == "progress":
        return _progress(message.progress)
    if kind == "delta":
        return _delta(message.delta)
    if kind == "finished":
        return _finished(message.finished)
    if kind == "oversized_document":
        assert isinstance(message, pb.StreamGenerateResponse), "it has documents"
        return _oversized(message.oversized_document)
    raise InternalError("the server sent an event this client does not know: update the client")


def model_info_from(message: pb.GetModelInfoResponse) -> events.ModelInfo:
    """What the cluster serves."""
    return events.ModelInfo(
        model=message.model,
        max_model_len=message.max_model_len,
        vocab_size=message.vocab_size,
        has_chat_template=message.has_chat_template,
        max_session_tokens=message.max_session_tokens,
        max_message_bytes=message.max_message_bytes,
        eos_token_ids=tuple(message.eos_token_ids),
        max_prompt_tokens=message.max_prompt_tokens,
    )


def server_info_from(message: pb.GetServerInfoResponse) -> events.ServerInfo:
    """The cluster as the router sees it."""
    phases: Mapping[str, int] = message.sessions_by_phase
    return events.ServerInfo(
        version=message.version,
        router_id=message.router_id,
        sessions_by_phase=dict(phases),
        workers=tuple(_worker(worker) for worker in message.workers),
    )


def _worker(message: pb.WorkerInfo) -> events.WorkerInfo:
    return events.WorkerInfo(
        worker_id=message.worker_id,
        role=message.role,
        ready=message.ready,
        num_sessions=message.num_sessions,
        num_kv_blocks_held=message.num_kv_blocks_held,
        num_kv_blocks=message.num_kv_blocks,
        block_size=message.block_size,
        metrics_address=message.metrics_address,
    )


def _progress(message: pb.Progress) -> events.Progress:
    return events.Progress(
        last_sequence=message.last_sequence,
        received_tokens=message.received_tokens,
        prefilled_tokens=message.prefilled_tokens,
        computed_tokens=message.computed_tokens,
        reused_tokens=message.reused_tokens,
        invalidated_tokens=message.invalidated_tokens,
        credit_tokens=message.credit_tokens,
        delay=wire.delay_from_proto(message.delay),
    )


def _oversized(message: pb.OversizedDocument) -> events.OversizedDocument:
    return events.OversizedDocument(
        sequence=message.sequence,
        index=message.index,
        document_id=message.id,
        action=wire.oversized_from_proto(message.action),
        reason=message.reason,
        room_tokens=message.room_tokens,
        kept_tokens=message.kept_tokens,
        kept_chars=message.kept_chars if message.HasField("kept_chars") else None,
        cut_chars=message.cut_chars if message.HasField("cut_chars") else None,
        cut_tokens=message.cut_tokens if message.HasField("cut_tokens") else None,
    )


def _delta(message: pb.TokenDelta) -> events.TokenDelta:
    logprobs = tuple(
        TokenLogprobs(_logprob(item.sampled), tuple(_logprob(top) for top in item.top))
        for item in message.logprobs
    )
    return events.TokenDelta(message.text, tuple(message.token_ids), logprobs)


def _logprob(message: pb.Logprob) -> Logprob:
    return Logprob(message.token_id, message.logprob, message.rank, message.text)


def _finished(message: pb.GenerationFinished) -> events.Finished:
    return events.Finished(
        reason=_finish_reason(message.reason),
        usage=_usage(message.usage),
        timings=_timings(message.timings),
        stop_string=message.stop_string or None,
        stop_token_id=message.stop_token_id if message.HasField("stop_token_id") else None,
        document_order=tuple(message.document_order),
    )


def _finish_reason(number: int) -> FinishReason:
    try:
        reason = wire.finish_reason_from_proto(number)
    except ValueError as error:
        raise InternalError(f"the server sent an {error}: update the client") from error
    if reason is None:
        raise InternalError("the server ended the answer without saying why")
    return reason


def _usage(message: pb.Usage) -> events.Usage:
    return events.Usage(
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        computed_tokens=message.computed_tokens,
        reused_tokens=message.reused_tokens,
        invalidated_tokens=message.invalidated_tokens,
        uncomputed_at_seal_tokens=message.uncomputed_at_seal_tokens,
        prefetched_tokens=message.prefetched_tokens,
    )


def _timings(message: pb.Timings) -> events.Timings:
    has_second = message.HasField("first_to_second_token")
    return events.Timings(
        ttft_from_open_s=_seconds(message.ttft_from_open),
        ttft_from_seal_s=_seconds(message.ttft_from_seal),
        first_to_second_token_s=_seconds(message.first_to_second_token) if has_second else None,
        total_s=_seconds(message.total),
    )


def _seconds(duration: Duration) -> float:
    return duration.ToTimedelta().total_seconds()
