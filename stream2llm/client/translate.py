"""Between the client's values and protobuf messages; the only such place here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from google.protobuf.message import Message

from stream2llm import wire
from stream2llm.client import events
from stream2llm.client.inputs import (
    ChatTemplate,
    Content,
    Document,
    MessageLike,
    Ordering,
    PlainTemplate,
    Prompt,
    chat_messages,
    check_content,
)
from stream2llm.errors import InternalError, InvalidRequestError, OverloadedError
from stream2llm.handover import HandoverMode
from stream2llm.sampling import SamplingParameters
from stream2llm.text_options import ControlTokens, OversizedDocuments
from stream2llm.token_step import FinishReason, Logprob, TokenLogprobs
from stream2llm.v1 import inference_pb2 as pb

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
    message = pb.OpenSession(
        session_id=session_id,
        model=model,
        sampling=_sampling(sampling),
        handover=wire.handover_to_proto(handover),
        ordering=wire.ordering_to_proto(ordering.ordering),
        ranking_note=ordering.ranking_note,
        control_tokens=wire.control_tokens_to_proto(control_tokens),
        oversized_documents=wire.oversized_to_proto(oversized_documents),
    )
    if isinstance(template, ChatTemplate):
        message.chat.CopyFrom(
            pb.ChatTemplate(messages=_chat(template.messages), context_slot=template.context_slot)
        )
    else:
        message.plain.CopyFrom(
            pb.PlainTemplate(
                prefix=content_message(template.prefix), suffix=content_message(template.suffix)
            )
        )
    return message


def content_message(content: Content) -> pb.Content:
    """Text or token ids."""
    check_content(content)
    if isinstance(content, str):
        return pb.Content(text=content)
    return pb.Content(token_ids=_token_ids(content))


def document_messages(documents: Iterable[Document]) -> list[pb.Document]:
    """Documents, in order."""
    return [_document(document) for document in documents]


def generate_message(
    prompt: Prompt,
    sampling: SamplingParameters | None,
    model: str,
    session_id: str,
    control_tokens: ControlTokens = ControlTokens.NONE,
) -> pb.GenerateRequest:
    """A complete prompt: text, token ids or chat messages."""
    message = pb.GenerateRequest(
        session_id=session_id,
        model=model,
        sampling=_sampling(sampling),
        control_tokens=wire.control_tokens_to_proto(control_tokens),
    )
    if isinstance(prompt, str):
        message.text = prompt
    elif prompt and not isinstance(prompt[0], int):
        messages = chat_messages(cast("Sequence[MessageLike]", prompt))
        message.chat.CopyFrom(pb.ChatPrompt(messages=_chat(messages)))
    else:
        check_content(prompt)
        message.token_ids.CopyFrom(_token_ids(cast("Sequence[int]", prompt)))
    return message


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


def _document(document: Document) -> pb.Document:
    message = pb.Document(id=document.id, stays=document.stays)
    if isinstance(document.content, str):
        message.text = document.content
    elif document.content is not None:
        message.token_ids.CopyFrom(_token_ids(document.content))
    return message


def _token_ids(ids: Sequence[int]) -> pb.TokenIds:
    try:
        return pb.TokenIds(ids=ids)
    except ValueError as error:  # negative, or too large for uint32
        raise InvalidRequestError(f"token ids: {error}", field="token_ids") from error


def _chat(messages: Iterable[object]) -> list[pb.ChatMessage]:
    return [
        pb.ChatMessage(role=message.role, content=message.content)
        for message in chat_messages(cast("Iterable[MessageLike]", messages))
    ]


def _sampling(sampling: SamplingParameters | None) -> pb.SamplingParameters:
    if sampling is None:
        return pb.SamplingParameters()
    try:
        return wire.to_proto(sampling)
    except ValueError as error:  # what the message type cannot carry, for instance -1
        raise InvalidRequestError(f"sampling: {error}", field="sampling") from error


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
        handed_over_ahead_tokens=message.handed_over_ahead_tokens,
    )


def _timings(message: pb.Timings) -> events.Timings:
    return events.Timings(
        ttft_from_open_s=message.ttft_from_open.ToTimedelta().total_seconds(),
        ttft_from_seal_s=message.ttft_from_seal.ToTimedelta().total_seconds(),
        first_to_second_token_s=message.first_to_second_token.ToTimedelta().total_seconds(),
        total_s=message.total.ToTimedelta().total_seconds(),
    )
