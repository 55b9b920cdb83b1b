"""`DecodeService` continues answers; `HandoverService` releases hand-overs that are not read.

From the arrival of a Decode request on, this worker is responsible for its
hand-over: it reads the KV, or notifies prefill that it will not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress

import grpc

from decode_worker.answer_order import AnswerOrder, AnswerTurn
from decode_worker.engine import begin_decode, decode_steps
from decode_worker.fetch_orders import LocalTokens
from decode_worker.fetch_service import serve_fetches
from decode_worker.fetch_sessions import FetchSessions
from decode_worker.handover_check import KnownEngines, Transfer
from decode_worker.session_spans import DecodeNotes, PrefetchNotes
from stream2llm.api import codec
from stream2llm.api.errors import InvalidRequestError, UnavailableError, describe
from stream2llm.api.handover import ACCEPTED_METADATA
from stream2llm.api.rpc_status import abort
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.tenant import TenantShare
from stream2llm.api.token_step import TokenStep
from stream2llm.api.trace_context import TraceContext, context_in
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.engine.output_stream import OutputStream
from stream2llm.engine.worker import EngineWorker
from stream2llm.engine.worker_metrics import TransferMetrics
from stream2llm.serving.mux.served_call import ServedCall
from stream2llm.serving.observability.log_context import LogContext, bind
from stream2llm.serving.observability.tracing import Trace, recording
from stream2llm.serving.rpc.stream_writer import failures_as_status
from stream2llm.serving.sessions.ids import unique_id
from stream2llm.serving.sessions.request_check import check_id, check_token_ids
from stream2llm.serving.sessions.token_bytes import num_tokens as num_tokens_in
from stream2llm.serving.sessions.token_bytes import token_list

_log = logging.getLogger(__name__)


class DecodeService(worker_pb2_grpc.DecodeServiceServicer, worker_pb2_grpc.HandoverServiceServicer):
    """Serves the answers of one engine."""

    def __init__(
        self,
        worker: EngineWorker,
        metrics: TransferMetrics,
        fetches: FetchSessions,
        known: KnownEngines,
        order: AnswerOrder,
    ) -> None:
        self._worker = worker
        self._metrics = metrics
        self._fetches = fetches
        self._known = known
        self._order = order

    async def PrefetchKv(
        self,
        requests: AsyncIterator[worker_pb2.PrefetchKvRequest],
        context: ServedCall,
    ) -> None:
        """Prefetches KV for one session whose context is still streaming in."""
        notes = PrefetchNotes(self._begin_trace("prefetch", context))
        async with failures_as_status(context, None, _log, describe):
            with recording(notes.trace, notes.record):
                await serve_fetches(
                    self._worker, self._fetches, requests, context, self._transfer, notes
                )

    async def Decode(self, request: worker_pb2.DecodeRequest, context: ServedCall) -> None:
        """Continues one answer."""
        num_tokens = request.keep_tokens + num_tokens_in(request.token_ids)
        notes = DecodeNotes(
            self._begin_trace("decode", context), request.session_id, num_tokens - 1
        )
        bind(LogContext(notes.trace.context, request.session_id))
        async with failures_as_status(context, None, _log, describe):
            tokens = self._tokens(request)
            transfer = self._transfer(request.handover, num_tokens - 1)
            if request.refuse_when_full:
                self._require_room(num_tokens)
        # From here on this worker, not the router, is responsible for the hand-over.
        async with self._released_on_failure(request.session_id, transfer):
            await context.send_initial_metadata(ACCEPTED_METADATA)
        async with failures_as_status(context, None, _log, describe):
            with recording(notes.trace, notes.record), self._worker.sessions.reported():
                async with aclosing(self._steps(request, tokens, transfer, notes)) as steps:
                    async for response in steps:
                        step = response.step
                        notes.stepped(len(step.token_ids), is_last=bool(step.finish_reason))
                        await context.write(response)

    def _tokens(self, request: worker_pb2.DecodeRequest) -> list[int]:
        """Prompt and answer so far; raises InvalidRequestError and UnavailableError."""
        tokens = token_list(request.token_ids, "token_ids")
        if not request.keep_tokens:
            return tokens
        name, num_kept = request.fetch_session_id, request.keep_tokens
        return self._fetches.first_tokens(name, num_kept, request.num_fetches) + tokens

    def _begin_trace(self, name: str, context: ServedCall) -> Trace:
        return self._worker.tracing.begin(name, context_in(context.invocation_metadata()))

    def _transfer(self, handover: worker_pb2.Handover, num_tokens: int | None = None) -> Transfer:
        """Returns vLLM's transfer parameters of a hand-over; raises InvalidRequestError."""
        return self._known.check(
            handover.kv_transfer_params_json, handover.num_blocks, num_tokens, handover.kv_digest
        )

    def _require_room(self, num_tokens: int) -> None:
        """Raises UnavailableError when another worker should take an answer of `num_tokens`."""
        if self._worker.is_draining:
            raise UnavailableError("the worker is draining", reason="DRAINING")
        info = self._worker.engine.info
        num_held = self._worker.engine.stats.num_blocks_held(info.num_kv_blocks)
        num_free = info.num_kv_blocks - num_held
        if num_tokens > num_free * info.block_size:
            raise UnavailableError(
                f"{num_free} KV blocks are free, too few for {num_tokens} tokens", reason="FULL"
            )

    async def _steps(
        self,
        request: worker_pb2.DecodeRequest,
        tokens: list[int],
        transfer: Transfer,
        notes: DecodeNotes,
    ) -> AsyncGenerator[worker_pb2.DecodeResponse, None]:
        # The number of local prompt tokens goes out with the first step.
        local_tokens: list[int] = []

        def note_local(local: LocalTokens) -> None:
            notes.local = local
            num_prompt_tokens = len(tokens) - 1
            local_tokens.append(min(local.num_tokens, num_prompt_tokens))
            self._fetches.settle(request.fetch_session_id, num_prompt_tokens, local)

        request_id = unique_id(request.session_id)
        sampling = codec.decode(SamplingParameters, request.sampling)
        engine = self._worker.engine
        async with AsyncExitStack() as stack:
            context = notes.trace.recorded_context
            stream, turn = await self._begin(
                request_id, request, tokens, sampling, transfer, context, stack
            )
            notes.submitted()
            steps = decode_steps(
                engine,
                request_id,
                stream,
                sampling.logprobs,
                note_local,
                lambda: self._fetches.metrics.mismatched("after_seal"),
            )
            await stack.enter_async_context(aclosing(steps))
            async for step in self._counting_failures(steps):
                turn.stepped(len(step.token_ids))
                local = local_tokens.pop() if local_tokens else None
                yield worker_pb2.DecodeResponse(step=codec.fields(step), local_tokens=local)

    async def _begin(
        self,
        request_id: str,
        request: worker_pb2.DecodeRequest,
        tokens: list[int],
        sampling: SamplingParameters,
        transfer: Transfer,
        trace: TraceContext | None,
        stack: AsyncExitStack,
    ) -> tuple[OutputStream, AnswerTurn]:
        """Submits the request to the engine; on any failure, notifies prefill of the hand-over."""
        async with self._released_on_failure(request_id, transfer):
            self._check(request, tokens, sampling)
            stack.enter_context(self._worker.session())
            tenant = codec.decode(TenantShare, request.tenant)
            turn = stack.enter_context(
                self._order.turn(tenant, len(tokens), sampling.max_tokens or 0)
            )
            stream = await begin_decode(
                self._worker.engine,
                request_id,
                tokens,
                sampling,
                transfer,
                request.fetch_session_id,
                request.cache_salt,
                answer_tokens=request.answer_tokens,
                rank=turn.rank,
                trace=trace,
            )
            return stream, turn

    @asynccontextmanager
    async def _released_on_failure(self, hint: str, transfer: Transfer) -> AsyncIterator[None]:
        """Notifies prefill of a hand-over that the engine does not get, whatever the reason."""
        try:
            yield
        except BaseException:
            with suppress(UnavailableError):  # a dead engine cannot notify; the lease ends
                await asyncio.shield(self._release(hint, transfer))
            raise

    def _check(
        self,
        request: worker_pb2.DecodeRequest,
        tokens: list[int],
        sampling: SamplingParameters,
    ) -> None:
        """Raises InvalidRequestError for a request that must not reach the engine."""
        vocab_size = self._worker.engine.info.vocab_size
        check_id(request.session_id, "session_id")
        check_id(request.fetch_session_id, "fetch_session_id")
        check_id(request.cache_salt, "cache_salt")
        check_token_ids(tokens, vocab_size, "token_ids")
        sampling.validate(vocab_size)
        codec.decode(TenantShare, request.tenant).validate("tenant")

    async def _counting_failures(self, steps: AsyncIterator[TokenStep]) -> AsyncIterator[TokenStep]:
        try:
            async for step in steps:
                yield step
        except UnavailableError as error:
            if error.reason == "KV_LOST":
                self._metrics.record_failed()
            raise

    async def ReleaseHandover(
        self, request: worker_pb2.ReleaseHandoverRequest, context: grpc.aio.ServicerContext
    ) -> worker_pb2.ReleaseHandoverResponse:
        """Notifies prefill that this hand-over will not be read."""
        try:
            check_id(request.session_id, "session_id")
            await self._release(request.session_id, self._transfer(request.handover))
        except (InvalidRequestError, UnavailableError) as error:
            await abort(context, error)
        return worker_pb2.ReleaseHandoverResponse()

    async def _release(self, hint: str, transfer: Transfer) -> None:
        self._metrics.record_released()
        await self._worker.engine.reject_handover(unique_id(hint), transfer)
