"""The asynchronous client: one channel, any number of concurrent sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from inspect import iscoroutinefunction
from typing import Any, Self

import grpc

from stream2llm.api import arguments, codec
from stream2llm.api.events import Event, ModelInfo, ServerInfo
from stream2llm.api.grpc_options import Options, client_channel_options
from stream2llm.api.handover import HandoverMode
from stream2llm.api.ordering import DocumentOrdering
from stream2llm.api.requests import Content, GenerateRequest, OpenSession
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.text_options import ControlTokens, OversizedDocuments, option_of
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.connection import Connection, refuse_after_fork
from stream2llm.client.inputs import (
    MessageLike,
    Prompt,
    handover_of,
    prompt_of,
    sampling_of,
    template_of,
)
from stream2llm.client.rpc import OnEvent
from stream2llm.client.session import AsyncSession
from stream2llm.client.status import error_from_rpc
from stream2llm.client.stream import AnswerStream
from stream2llm.client.translate import check_size, event_from, message_of

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_MOST_MESSAGE_BYTES = 2**31 - 1  # gRPC's own limit
_HIGHEST_PORT = 2**16 - 1
DEFAULT_INFO_TIMEOUT_S = 10.0


class AsyncClient:
    """A client of one router at "host:port". Use it in `async with`, or call `close`.

    The channel is created at the first call, and belongs to the event loop and the process
    of that call. Plain text by default; for TLS give `credentials`
    (grpc.ssl_channel_credentials(...)).
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        refuse_after_fork()
        self.address = _checked_address(address)
        self._max_message_bytes = arguments.integer(
            max_message_bytes, "max_message_bytes", 1, _MOST_MESSAGE_BYTES
        )
        credentials = _checked_credentials(credentials)
        options = client_channel_options(address, self._max_message_bytes)
        self._connection = Connection(lambda: _channel(address, credentials, options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; open sessions are cancelled."""
        await self._connection.close()

    def session(
        self,
        *,
        prefix: Content | None = None,
        suffix: Content | None = None,
        chat: Sequence[MessageLike] | None = None,
        context_slot: str | None = None,
        ordering: DocumentOrdering | str = DocumentOrdering.AS_GIVEN,
        ranking_note: str | None = None,
        sampling: SamplingParameters | None = None,
        model: str = "",
        session_id: str = "",
        handover: HandoverMode | None = None,
        control_tokens: ControlTokens | str = ControlTokens.NONE,
        oversized_documents: OversizedDocuments | str = OversizedDocuments.FAIL,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> AsyncSession:
        """Returns a session whose context streams in; it opens in `async with`.

        Give either prefix and suffix, or chat messages of which one holds the slot
        "{{context}}" (or `context_slot`). With `ordering` "stable", updates invalidate
        less: documents keep their places, and the model gets their ranking in
        `ranking_note` (None: the server's own; empty: none). `handover` is how the
        context's KV reaches the decode worker, "at_seal" or "streamed"; None means the
        cluster's setting. `control_tokens` are the texts in which "<|im_end|>" and the
        like are control tokens: "none", "template" (prefix, suffix and chat messages) or
        "all" (documents too). `oversized_documents` is what happens to a document that
        is too long: "fail" the session, "refuse" only the document, or "cut" it.
        `timeout_s` limits the whole session. `on_event` is called with every event on
        arrival.
        """
        timeout_s = arguments.seconds(timeout_s, "timeout_s")
        opening = OpenSession(
            session_id=session_id,
            model=model,
            template=template_of(prefix, suffix, chat, context_slot),
            sampling=sampling_of(sampling),
            ordering=option_of(DocumentOrdering, ordering),
            ranking_note=ranking_note,
            handover=handover_of(handover),
            control_tokens=option_of(ControlTokens, control_tokens),
            oversized_documents=option_of(OversizedDocuments, oversized_documents),
        )
        return AsyncSession(
            lambda: self._connection.stub().StreamGenerate(timeout=timeout_s),
            message_of(opening, "open"),
            self._max_message_bytes,
            _checked_callback(on_event),
            timeout_s,
        )

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParameters | None = None,
        model: str = "",
        session_id: str = "",
        control_tokens: ControlTokens | str = ControlTokens.NONE,
        timeout_s: float | None = None,
    ) -> AnswerStream:
        """Answers one complete prompt: text, token ids or chat messages.

        `async for event in client.generate(...)`, or
        `answer = await client.generate(...).answer()`.
        """
        timeout_s = arguments.seconds(timeout_s, "timeout_s")
        message = message_of(
            GenerateRequest(
                session_id=session_id,
                model=model,
                prompt=prompt_of(prompt),
                sampling=sampling_of(sampling),
                control_tokens=option_of(ControlTokens, control_tokens),
            )
        )
        check_size(message, self._max_message_bytes)
        return AnswerStream(self._generate(message, timeout_s))

    async def model_info(
        self, model: str = "", *, timeout_s: float | None = DEFAULT_INFO_TIMEOUT_S
    ) -> ModelInfo:
        """The served model and its limits."""
        request = pb.GetModelInfoRequest(model=arguments.text(model, "model"))
        return codec.decode(ModelInfo, await self._unary("GetModelInfo", request, timeout_s))

    async def server_info(self, *, timeout_s: float | None = DEFAULT_INFO_TIMEOUT_S) -> ServerInfo:
        """Versions, workers and load, as the router sees them."""
        request = pb.GetServerInfoRequest()
        return codec.decode(ServerInfo, await self._unary("GetServerInfo", request, timeout_s))

    async def _generate(
        self, message: pb.GenerateRequest, timeout_s: float | None
    ) -> AsyncGenerator[Event, None]:
        call = self._connection.stub().Generate(message, timeout=timeout_s)
        try:
            async for response in call:
                yield event_from(response)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, timeout_s, "the answer did not end") from None
        finally:
            call.cancel()  # does nothing when it has ended

    async def _unary(self, method: str, request: Any, timeout_s: float | None) -> Any:
        timeout_s = arguments.seconds(timeout_s, "timeout_s")
        try:
            return await getattr(self._connection.stub(), method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, timeout_s, f"{method} got no answer") from None


def _channel(
    address: str, credentials: grpc.ChannelCredentials | None, options: Options
) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _checked_address(address: str) -> str:
    """Accepts what gRPC can resolve, except a port above 65535, which it takes modulo 2^16."""
    port = arguments.text(address, "address").rpartition(":")[2]
    if not address.strip() or (port.isdecimal() and int(port) > _HIGHEST_PORT):
        raise arguments.refused("address", address, '"host:port"')
    return address


def _checked_credentials(
    credentials: grpc.ChannelCredentials | None,
) -> grpc.ChannelCredentials | None:
    if credentials is None or isinstance(credentials, grpc.ChannelCredentials):
        return credentials
    raise arguments.refused("credentials", credentials, "grpc.ChannelCredentials or None")


def _checked_callback(on_event: OnEvent | None) -> OnEvent | None:
    if on_event is None or (callable(on_event) and not iscoroutinefunction(on_event)):
        return on_event
    raise arguments.refused("on_event", on_event, "a plain function of one event, or None")


def connect(address: str, **options: Any) -> AsyncClient:
    """Returns an AsyncClient for "host:port"; options as the class takes them."""
    return AsyncClient(address, **options)
