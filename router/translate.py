"""The public API's messages to the router's values and back. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration

from router.message_limit import TooLarge
from router.types import (
    Accepted,
    AppendEvent,
    ChatMessage,
    ChatTemplate,
    ClientEvent,
    Content,
    Delta,
    DocumentInput,
    Finished,
    OpenEvent,
    OversizedDocument,
    PlainTemplate,
    ProgressFigures,
    SealEvent,
    ServerEvent,
    Timings,
    UpdateEvent,
)
from stream2llm.api import codec as wire
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.prefix import Tokens

DEFAULT_CONTEXT_SLOT = "{{context}}"
# grpc.aio ends the iteration over a cancelled RPC's requests a moment before it
# cancels the handler. Without a pause a client that goes away would look like
# one that closes its half, and its session like a failed one.
_CANCEL_SETTLES_S = 0.2


# -- what clients send ------------------------------------------------------------


async def client_events(requests: AsyncIterator[Any]) -> AsyncIterator[ClientEvent]:
    """The events of a StreamGenerate RPC."""
    async for request in requests:
        if isinstance(request, TooLarge):
            raise request.error()
        yield client_event(request)
    await asyncio.sleep(_CANCEL_SETTLES_S)


async def one_shot_events(request: pb.GenerateRequest | TooLarge) -> AsyncIterator[ClientEvent]:
    """A complete prompt, as a session that is sealed at once."""
    if isinstance(request, TooLarge):
        raise request.error()
    yield OpenEvent(
        sequence=0,
        session_id=request.session_id,
        model=request.model,
        template=_prompt(request),
        sampling=wire.from_proto(request.sampling),
        one_shot=True,
        control_tokens=wire.control_tokens_from_proto(request.control_tokens),
    )
    yield SealEvent(sequence=0)


def client_event(request: pb.StreamGenerateRequest) -> ClientEvent:
    """One event of a session."""
    match request.WhichOneof("event"):
        case "open":
            return _open(request.sequence, request.open)
        case "append":
            return AppendEvent(request.sequence, _documents(request.append.documents))
        case "update":
            return UpdateEvent(request.sequence, _documents(request.update.documents))
        case "seal":
            seal = request.seal
            suffix = _content(seal.suffix) if seal.HasField("suffix") else None
            return SealEvent(request.sequence, suffix)
    raise InvalidRequestError(
        f"the message with sequence {request.sequence} holds no event this server knows",
        reason="NO_EVENT",
        field="event",
    )


def _open(sequence: int, message: pb.OpenSession) -> OpenEvent:
    template: PlainTemplate | ChatTemplate
    if message.WhichOneof("template") == "chat":
        slot = message.chat.context_slot or DEFAULT_CONTEXT_SLOT
        template = ChatTemplate(_messages(message.chat.messages), slot)
    else:
        template = PlainTemplate(_content(message.plain.prefix), _content(message.plain.suffix))
    return OpenEvent(
        sequence=sequence,
        session_id=message.session_id,
        model=message.model,
        template=template,
        sampling=wire.from_proto(message.sampling),
        handover=wire.handover_from_proto(message.handover),
        ordering=wire.ordering_from_proto(message.ordering),
        ranking_note=message.ranking_note if message.HasField("ranking_note") else None,
        control_tokens=wire.control_tokens_from_proto(message.control_tokens),
        oversized_documents=wire.oversized_from_proto(message.oversized_documents),
    )


def _prompt(request: pb.GenerateRequest) -> PlainTemplate | ChatTemplate:
    match request.WhichOneof("prompt"):
        case "text":
            return PlainTemplate(prefix=request.text)
        case "token_ids":
            return PlainTemplate(prefix=_tokens(request.token_ids))
        case "chat":
            return ChatTemplate(_messages(request.chat.messages), context_slot=None)
    raise InvalidRequestError("the request has no prompt", reason="NO_PROMPT", field="prompt")


def _content(message: pb.Content) -> Content:
    # Neither set is the empty text.
    return _tokens(message.token_ids) if message.HasField("token_ids") else message.text


def _documents(documents: Any) -> tuple[DocumentInput, ...]:
    return tuple(
        DocumentInput(d.id, _document_content(d), d.stays if d.HasField("stays") else None)
        for d in documents
    )


def _document_content(document: pb.Document) -> Content | None:
    match document.WhichOneof("content"):
        case "text":
            return document.text
        case "token_ids":
            return _tokens(document.token_ids)
    return None


def _messages(messages: Any) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(message.role, message.content) for message in messages)


def _tokens(message: pb.TokenIds) -> Tokens:
    return np.fromiter(message.ids, dtype=np.uint32, count=len(message.ids))


# -- what clients get -------------------------------------------------------------


def server_event(event: ServerEvent, message: Any) -> Any:
    """Fills in a StreamGenerateResponse or a GenerateResponse and returns it."""
    match event:
        case Accepted():
            message.accepted.CopyFrom(
                pb.SessionAccepted(
                    session_id=event.session_id,
                    model=event.model,
                    credit_tokens=event.credit_tokens,
                )
            )
        case ProgressFigures():
            message.progress.CopyFrom(_progress(event))
        case Delta():
            message.delta.CopyFrom(_delta(event))
        case Finished():
            message.finished.CopyFrom(_finished(event))
        case OversizedDocument():
            message.oversized_document.CopyFrom(_oversized(event))
    return message


def _progress(figures: ProgressFigures) -> pb.Progress:
    return pb.Progress(
        last_sequence=figures.last_sequence,
        received_tokens=figures.received_tokens,
        prefilled_tokens=figures.prefilled_tokens,
        computed_tokens=figures.computed_tokens,
        reused_tokens=figures.reused_tokens,
        invalidated_tokens=figures.invalidated_tokens,
        credit_tokens=figures.credit_tokens,
        delay=wire.delay_to_proto(figures.delay),
    )


def _delta(delta: Delta) -> pb.TokenDelta:
    return pb.TokenDelta(
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=[wire.token_logprobs_to_proto(item) for item in delta.logprobs],
    )


def _oversized(document: OversizedDocument) -> pb.OversizedDocument:
    return pb.OversizedDocument(
        sequence=document.sequence,
        index=document.index,
        id=document.document_id,
        action=wire.oversized_to_proto(document.action),
        reason=document.reason,
        room_tokens=document.room_tokens,
        kept_tokens=document.kept_tokens,
        kept_chars=document.kept_chars,
        cut_chars=document.cut_chars,
        cut_tokens=document.cut_tokens,
    )


def _finished(finished: Finished) -> pb.GenerationFinished:
    usage = finished.usage
    return pb.GenerationFinished(
        reason=wire.finish_reason_to_proto(finished.ending.reason),
        stop_string=finished.ending.stop_string,
        stop_token_id=finished.ending.stop_token_id,
        usage=pb.Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            computed_tokens=usage.computed_tokens,
            reused_tokens=usage.reused_tokens,
            invalidated_tokens=usage.invalidated_tokens,
            uncomputed_at_seal_tokens=usage.uncomputed_at_seal_tokens,
            prefetched_tokens=usage.prefetched_tokens,
        ),
        timings=_timings(finished.timings),
        document_order=finished.document_order,
    )


def _timings(timings: Timings) -> pb.Timings:
    second = timings.first_to_second_token_s
    return pb.Timings(
        ttft_from_open=_duration(timings.ttft_from_open_s),
        ttft_from_seal=_duration(timings.ttft_from_seal_s),
        first_to_second_token=None if second is None else _duration(second),
        total=_duration(timings.total_s),
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
