"""The asynchronous client: a channel to each router, any number of concurrent sessions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from inspect import iscoroutinefunction
from typing import Any, Self

import grpc

from stream2llm.api import arguments, codec
from stream2llm.api.address import router_targets
from stream2llm.api.call_metadata import Metadata
from stream2llm.api.credentials import API_KEY_VARIABLE, Token, credentials_of
from stream2llm.api.events import ModelInfo, ServerInfo
from stream2llm.api.handover import HandoverMode
from stream2llm.api.options import ControlTokens, DocumentOrdering, OversizedDocuments, option_of
from stream2llm.api.requests import Content, GenerateRequest, OpenSession
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.tls import Tls, tls_of
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.channels import MAX_MESSAGE_BYTES, MOST_MESSAGE_BYTES, connections_to
from stream2llm.client.chat_inputs import ChatOptions, JsonObject, MessageLike
from stream2llm.client.inbox import OnEvent
from stream2llm.client.inputs import (
    Prompt,
    handover_of,
    prompt_of,
    sampling_of,
    template_of,
    ttft_slo_of,
)
from stream2llm.client.one_shot import OneShot, PromptTokens
from stream2llm.client.placed_session import PlacedSession, SessionOptions
from stream2llm.client.recording import SessionRecording, recording_path
from stream2llm.client.recovery import SessionRecovery, recovery_of
from stream2llm.client.session import AsyncSession
from stream2llm.client.status import error_from_rpc
from stream2llm.client.stream import AnswerStream
from stream2llm.client.trace import trace_metadata
from stream2llm.client.translate import check_size, message_of

DEFAULT_INFO_TIMEOUT_S = 10.0


class AsyncClient:
    """A client of the router at "host:port", or of several. Use it in `async with`, or call `close`.

    Several addresses, as a list, are the routers of one cluster: sessions are spread over them,
    and go on at another one when theirs is lost.

    The channel is created at the first call, and belongs to the event loop and the process
    of that call. Plain text by default. For TLS, `tls` is the path of a PEM file with the
    authority of the cluster, True for the authorities that this machine trusts, or a
    ClientTls with a certificate to show or another name to expect; or give gRPC's own
    `credentials` instead.

    Where the cluster asks who calls, `api_key` is a key of it, or `token` one of its issuer:
    text, or a function that returns the token to send with the next call. Without both, the
    environment's STREAM2LLM_API_KEY is sent; `api_key=""` sends none. Neither is sent to
    another machine in plain text.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        tls: Tls = None,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        token: Token | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        # As it was given.
        self.address = address
        self._max_message_bytes = arguments.integer(
            max_message_bytes, "max_message_bytes", 1, MOST_MESSAGE_BYTES
        )
        self._recording_path = recording_path()
        self._connections = connections_to(
            address,
            tls_of(tls),
            credentials,
            credentials_of(api_key, token, os.environ.get(API_KEY_VARIABLE)),
            self._max_message_bytes,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def set_routers(self, address: str | Sequence[str]) -> None:
        """The cluster's routers are others from now on; for callers that find them by themselves.

        A session under way at a router that is not among them stays there, and asks these when
        that one is lost. Call it in the event loop of the client.
        """
        self._connections.become(router_targets(address))
        self.address = address

    async def close(self) -> None:
        """Closes the channel; open sessions are cancelled."""
        await self._connections.close()

    def session(
        self,
        *,
        prefix: Content | None = None,
        suffix: Content | None = None,
        chat: Sequence[MessageLike] | None = None,
        context_slot: str | None = None,
        tools: Sequence[JsonObject] | None = None,
        chat_template_kwargs: JsonObject | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool | None = None,
        ordering: DocumentOrdering | str = DocumentOrdering.AS_GIVEN,
        ranking_note: str | None = None,
        sampling: SamplingParameters | None = None,
        model: str = "",
        session_id: str = "",
        handover: HandoverMode | None = None,
        control_tokens: ControlTokens | str = ControlTokens.NONE,
        oversized_documents: OversizedDocuments | str = OversizedDocuments.FAIL,
        ttft_slo_ms: int | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
        metadata: Metadata = (),
        on_event: OnEvent | None = None,
        recover: bool | SessionRecovery = True,
    ) -> AsyncSession:
        """Returns a session whose context streams in; it opens in `async with`.

        Give either prefix and suffix, or chat messages of which one holds the slot
        "{{context}}" (or `context_slot`). `tools` are JSON objects that the model's chat
        template shows to the model, `chat_template_kwargs` variables of that template, for
        instance `{"enable_thinking": False}`. With `continue_final_message` the answer
        continues the last message; `add_generation_prompt=False` leaves out the beginning of
        the model's turn. With `ordering` "stable", updates invalidate
        less: documents keep their places, and the model gets their ranking in
        `ranking_note` (None: the server's own; empty: none). `handover` is how the
        context's KV reaches the decode worker, "at_seal" or "streamed"; None means the
        cluster's setting. `control_tokens` are the texts in which "<|im_end|>" and the
        like are control tokens: "none", "template" (prefix, suffix and chat messages) or
        "all" (documents too). `oversized_documents` is what happens to a document that
        is too long: "fail" the session, "refuse" only the document, or "cut" it.
        `ttft_slo_ms` is the deadline of the first token, in milliseconds from the seal; None
        means the tenant's or the model's, and it cannot be longer than that.
        `timeout_s` limits the whole session. `traceparent` is the W3C trace context that the
        session continues; None means that of the active OpenTelemetry span, if there is one.
        `metadata` goes with the call beside the client's own: pairs of a lower-case name and a
        text, such as a gateway's deadline, or the credentials of one of its callers.
        `on_event` is called with every event on arrival. With `recover` the session goes on
        when its router is lost, at another one or at the same when it is back: `Progress`
        falls back and counts a restart, and the answer goes on behind its last token. The
        client keeps what the session has sent for that; `SessionRecovery` has the limits.
        """
        timeout_s = arguments.seconds(timeout_s, "timeout_s")
        sent = (*metadata, *trace_metadata(traceparent))
        chat_options = ChatOptions(
            tools, chat_template_kwargs, continue_final_message, add_generation_prompt
        )
        opening = OpenSession(
            session_id=session_id,
            model=model,
            template=template_of(prefix, suffix, chat, context_slot, chat_options),
            sampling=sampling_of(sampling),
            ordering=option_of(DocumentOrdering, ordering),
            ranking_note=ranking_note,
            handover=handover_of(handover),
            control_tokens=option_of(ControlTokens, control_tokens),
            oversized_documents=option_of(OversizedDocuments, oversized_documents),
            ttft_slo_ms=ttft_slo_of(ttft_slo_ms, "open.ttft_slo_ms"),
        )
        options = SessionOptions(
            self._max_message_bytes,
            recovery_of(recover),
            keeps_events=_depends_on_events(opening),
            on_event=_checked_callback(on_event),
            timeout_s=timeout_s,
        )
        message = message_of(opening, "open")

        def start_call(router: int, left_s: float | None) -> Any:
            stub = self._connections.stub(router)
            return stub.StreamGenerate(timeout=left_s, metadata=sent)

        routers = self._connections.routers
        path = self._recording_path
        return AsyncSession(
            lambda: PlacedSession(start_call, routers, message, options),
            message,
            None if path is None else SessionRecording(path, opening),
        )

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParameters | None = None,
        model: str = "",
        session_id: str = "",
        tools: Sequence[JsonObject] | None = None,
        chat_template_kwargs: JsonObject | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool | None = None,
        control_tokens: ControlTokens | str = ControlTokens.NONE,
        ttft_slo_ms: int | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
        metadata: Metadata = (),
        recover: bool | SessionRecovery = True,
        prompt_tokens: PromptTokens | None = None,
    ) -> AnswerStream:
        """Answers one complete prompt: text, token ids or chat messages.

        `async for event in client.generate(...)`, or
        `answer = await client.generate(...).answer()`. `traceparent`, `metadata`, `ttft_slo_ms`
        and what goes with chat messages (`tools`, ...) are as in `session`. With `recover`, the
        answer to text or token ids goes on when its router is lost, as a session does; chat
        messages, or a prompt with `truncate_prompt_tokens`, are asked again at the next router,
        and the call fails if anything of the answer has come, unless `prompt_tokens` returns the
        tokens of the prompt as that router had them.
        """
        timeout_s = arguments.seconds(timeout_s, "timeout_s")
        sent = (*metadata, *trace_metadata(traceparent))
        chat_options = ChatOptions(
            tools, chat_template_kwargs, continue_final_message, add_generation_prompt
        )
        message = message_of(
            GenerateRequest(
                session_id=session_id,
                model=model,
                prompt=prompt_of(prompt, chat_options),
                sampling=sampling_of(sampling),
                control_tokens=option_of(ControlTokens, control_tokens),
                ttft_slo_ms=ttft_slo_of(ttft_slo_ms, "ttft_slo_ms"),
            )
        )
        check_size(message, self._max_message_bytes)
        limits = recovery_of(recover)
        answer = OneShot(self._connections, message, limits, timeout_s, sent, prompt_tokens)
        return AnswerStream(answer.events(), max(message.sampling.n, 1))

    async def model_info(
        self,
        model: str = "",
        *,
        timeout_s: float | None = DEFAULT_INFO_TIMEOUT_S,
        metadata: Metadata = (),
    ) -> ModelInfo:
        """The served model and its limits; `metadata` as in `session`."""
        request = pb.GetModelInfoRequest(model=arguments.text(model, "model"))
        answer = await self._unary("GetModelInfo", request, timeout_s, metadata)
        return codec.decode(ModelInfo, answer)

    async def server_info(self, *, timeout_s: float | None = DEFAULT_INFO_TIMEOUT_S) -> ServerInfo:
        """Versions, workers and load, as the router sees them."""
        request = pb.GetServerInfoRequest()
        return codec.decode(ServerInfo, await self._unary("GetServerInfo", request, timeout_s))

    async def _unary(
        self, method: str, request: Any, timeout_s: float | None, metadata: Metadata = ()
    ) -> Any:
        timeout_s = arguments.seconds(timeout_s, "timeout_s")

        async def ask(stub: Any) -> Any:
            try:
                call = getattr(stub, method)
                return await call(request, timeout=timeout_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error, timeout_s, f"{method} got no answer") from None

        return await self._connections.ask(ask)


def _depends_on_events(opening: OpenSession) -> bool:
    """Whether the context depends on each event, and not only on the present documents."""
    is_stable = opening.ordering is DocumentOrdering.STABLE
    return is_stable or opening.oversized_documents is not OversizedDocuments.FAIL


def _checked_callback(on_event: OnEvent | None) -> OnEvent | None:
    if on_event is None or (callable(on_event) and not iscoroutinefunction(on_event)):
        return on_event
    raise arguments.refused("on_event", on_event, "a plain function of one event, or None")


def connect(address: str | Sequence[str], **options: Any) -> AsyncClient:
    """Returns an AsyncClient for "host:port", or several; options as the class takes them."""
    return AsyncClient(address, **options)
