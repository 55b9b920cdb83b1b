"""The public API's requests to the events of a session. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from router.message_limit import TooLarge
from stream2llm.api import codec
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.requests import (
    ChatPrompt,
    ClientEvent,
    GenerateRequest,
    OpenSession,
    PlainTemplate,
    SealContext,
)
from stream2llm.api.v1 import inference_pb2 as pb

# grpc.aio ends the iteration over a cancelled RPC's requests a moment before it
# cancels the handler. Without a pause a client that goes away would look like
# one that closes its half, and its session like a failed one.
_CANCEL_SETTLES_S = 0.2


async def client_events(requests: AsyncIterator[Any]) -> AsyncIterator[ClientEvent]:
    """The events of a StreamGenerate RPC."""
    async for request in requests:
        if isinstance(request, TooLarge):
            raise request.error()
        yield client_event(request)
    await asyncio.sleep(_CANCEL_SETTLES_S)


async def one_shot_events(message: pb.GenerateRequest | TooLarge) -> AsyncIterator[ClientEvent]:
    """A complete prompt, as a session that is sealed at once."""
    if isinstance(message, TooLarge):
        raise message.error()
    request = codec.decode(GenerateRequest, message)
    prompt = request.prompt
    if prompt is None:
        raise InvalidRequestError("the request has no prompt", reason="NO_PROMPT", field="prompt")
    yield OpenSession(
        session_id=request.session_id,
        model=request.model,
        template=prompt if isinstance(prompt, ChatPrompt) else PlainTemplate(prompt),
        sampling=request.sampling,
        control_tokens=request.control_tokens,
        ttft_slo_ms=request.ttft_slo_ms,
        one_shot=True,
    )
    yield SealContext()


def client_event(request: pb.StreamGenerateRequest) -> ClientEvent:
    """One event of a session."""
    event: ClientEvent | None = codec.decode_event(request)
    if event is None:
        raise InvalidRequestError(
            f"the message with sequence {request.sequence} holds no event this server knows",
            reason="NO_EVENT",
            field="event",
        )
    return replace(event, sequence=request.sequence)
