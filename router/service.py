"""The public gRPC service: translates messages, and turns a session's error into a status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import grpc

import stream2llm
from router.message_limit import TooLarge
from router.refusals import Refusals
from router.router_parts import RouterParts
from router.session_runner import check_model, run_session
from router.worker import Worker
from stream2llm.api import codec
from stream2llm.api.errors import InvalidRequestError, Stream2LLMError
from stream2llm.api.events import Event, ModelInfo, ServerInfo, WorkerInfo
from stream2llm.api.grpc_options import SERVICE_NAME
from stream2llm.api.options import slos_in
from stream2llm.api.requests import (
    ChatPrompt,
    ClientEvent,
    GenerateRequest,
    OpenSession,
    PlainTemplate,
    SealContext,
)
from stream2llm.api.rpc_status import abort
from stream2llm.api.trace_context import context_in
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import inference_pb2_grpc, worker_pb2
from stream2llm.security.principal import Scope, caller
from stream2llm.serving.rpc.stream_writer import StreamWriter, failures_as_status

# grpc.aio ends the iteration over a cancelled RPC's requests a moment before it
# cancels the handler. Without a pause a client that goes away would look like
# one that closes its half, and its session like a failed one.
_CANCEL_SETTLES_S = 0.2
_logger = logging.getLogger(__name__)
# Methods whose requests carry documents or prompts.
LIMITED_METHODS = frozenset(f"/{SERVICE_NAME}/{name}" for name in ("StreamGenerate", "Generate"))
# Who may call what; what is not listed is for operators.
SCOPES: dict[str, Scope | None] = {
    **{
        f"/{SERVICE_NAME}/{name}": Scope.SESSION
        for name in ("StreamGenerate", "Generate", "GetModelInfo")
    },
    f"/{SERVICE_NAME}/GetServerInfo": Scope.READ,
    # What is in the public .proto files.
    "/grpc.reflection.v1alpha.ServerReflection/": Scope.SESSION,
    # For load balancers and probes, which have no credentials.
    "/grpc.health.v1.Health/": None,
}
_STATUS_TIMEOUT_S = 1.0


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


class StreamingInferenceServicer(inference_pb2_grpc.StreamingInferenceServiceServicer):
    """Handles messages and statuses; `session_runner` runs the sessions."""

    def __init__(self, parts: RouterParts) -> None:
        self._parts = parts
        self.refusals = Refusals(parts.metrics, parts.clock)

    async def StreamGenerate(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
        events = client_events(request_iterator)
        await self._run(events, pb.StreamGenerateResponse, context)

    async def Generate(self, request: pb.GenerateRequest | TooLarge, context: Any) -> None:
        session_id = "" if isinstance(request, TooLarge) else request.session_id
        events = one_shot_events(request)
        await self._run(events, pb.GenerateResponse, context, session_id, is_sealed=True)

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, context: Any
    ) -> pb.GetModelInfoResponse:
        refusals = self.refusals
        try:
            with refusals.counted(), refusals.at_the_door("GetModelInfo", context.peer()):
                check_model(self._parts, request.model)
        except Stream2LLMError as error:
            await abort(context, error)
        return cast("pb.GetModelInfoResponse", codec.encode(self._model_info()))

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Any
    ) -> pb.GetServerInfoResponse:
        workers = await asyncio.gather(*map(_worker_info, self._parts.workers))
        info = ServerInfo(
            version=stream2llm.__version__,
            router_id=self._parts.spec.router_id,
            sessions_by_phase=self._parts.sessions.by_phase(),
            workers=tuple(workers),
            controller_address=self._parts.workers.controller_address,
            tenants=self._parts.sessions.by_tenant(),
            restarts_by_cause=dict(self._parts.sessions.restarts),
            recovery=self._parts.sessions.recovery,
        )
        return cast("pb.GetServerInfoResponse", codec.encode(info))

    async def _run(
        self,
        events: AsyncIterator[ClientEvent],
        response_type: Any,
        context: Any,
        session_id: str = "",
        *,
        is_sealed: bool = False,
    ) -> None:
        writer = _Writer(context, response_type)
        rpc = response_type.DESCRIPTOR.name.removesuffix("Response")
        metadata = context.invocation_metadata()
        async with failures_as_status(context, writer, _logger, lambda _: "internal error"):
            # The session may wait for a worker before `Accepted`. Ahead of its place: nothing is
            # held yet if the client has left meanwhile.
            await writer.begin(())
            with self.refusals.counted():
                with self.refusals.at_the_door(rpc, context.peer(), session_id):
                    slos = tuple(slos_in(metadata))
                    place = self._parts.sessions.admit(caller().tenant, is_sealed=is_sealed)
                parent = context_in(metadata)
                await run_session(self._parts, place, events, writer.send, parent, slos)

    def _model_info(self) -> ModelInfo:
        spec, tokenizer = self._parts.spec, self._parts.text.tokenizer
        lengths = self._parts.lengths()
        return ModelInfo(
            model=spec.model_name,
            max_model_len=lengths.max_total_tokens,
            max_prompt_tokens=lengths.max_prompt_tokens,
            vocab_size=tokenizer.files.vocab_size,
            has_chat_template=tokenizer.has_chat_template,
            max_session_tokens=spec.limits.max_session_tokens,
            max_message_bytes=spec.limits.max_message_bytes,
            eos_token_ids=tuple(tokenizer.files.eos_token_ids),
        )


class _Writer(StreamWriter):
    """Writes domain events to one client."""

    def __init__(self, context: Any, response_type: Any) -> None:
        super().__init__(context)
        self._response_type = response_type

    async def send(self, event: Event) -> None:
        """Raises PeerGoneError when the client is gone."""
        await self.write_uncancelled(codec.encode_event(self._response_type, event))


async def _worker_info(worker: Worker) -> WorkerInfo:
    """The worker's own word, or what the view says of one that does not answer."""
    address = worker.address
    try:
        with worker.link.held() as link:
            response = await link.status.GetWorkerStatus(
                worker_pb2.GetWorkerStatusRequest(), timeout=_STATUS_TIMEOUT_S
            )
    except grpc.aio.AioRpcError:
        return WorkerInfo(
            worker_id=address.worker_id,
            role=address.role,
            ready=False,
            num_sessions=0,
            num_kv_blocks_held=0,
            num_kv_blocks=address.num_kv_blocks,
            block_size=address.block_size,
            metrics_address=address.metrics_address,
        )
    info = codec.decode(WorkerInfo, response.worker)
    return replace(
        info, ready=info.ready and not worker.is_suspect, metrics_address=address.metrics_address
    )
