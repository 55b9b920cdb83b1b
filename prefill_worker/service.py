"""`PrefillService`: translates protobuf to session events, and engine outputs to protobuf.

One RPC is one session. A reader passes the router's events to the engine while a
writer sends progress and the first token (of a session that is answered here, all of
them); both end together. If the RPC ends early, the session's blocks are freed, except
those that decode may be reading. A structured output is compiled meanwhile; one that
cannot be ends the RPC with the reason.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from functools import partial
from typing import Any

from prefill_worker.engine import PrefillOutput, PrefillSession, prefill_outputs
from prefill_worker.session_spans import PrefillNotes
from stream2llm.api import codec
from stream2llm.api.errors import EventOrderError, describe
from stream2llm.api.events import DelayReason
from stream2llm.api.handover import HELD_METADATA
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.tasks import TaskGroup, single_error
from stream2llm.api.tenant import TenantShare
from stream2llm.api.trace_context import context_in
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.engine.kv_digest import DIGEST_KEY
from stream2llm.engine.structured_output import GrammarOrder
from stream2llm.engine.vllm_sampling import token_step
from stream2llm.engine.worker import EngineWorker
from stream2llm.serving.mux.served_call import MessageWriter, ServedCall
from stream2llm.serving.observability.log_context import LogContext, bind
from stream2llm.serving.observability.tracing import NO_TRACE, recording
from stream2llm.serving.rpc.stream_writer import failures_as_status
from stream2llm.serving.sessions.answer_use import AnswerCount, AnswerUses
from stream2llm.serving.sessions.ids import unique_id
from stream2llm.serving.sessions.request_check import check_id
from stream2llm.serving.sessions.token_bytes import token_list

_log = logging.getLogger(__name__)


class PrefillService(worker_pb2_grpc.PrefillServiceServicer):
    """Serves the sessions of one engine."""

    def __init__(self, worker: EngineWorker, uses: AnswerUses) -> None:
        """`uses` counts the answers that go on here."""
        self._worker = worker
        self._uses = uses

    async def PrefillSession(
        self,
        requests: AsyncIterator[worker_pb2.PrefillSessionRequest],
        context: ServedCall,
    ) -> None:
        """Runs one session."""
        parent = context_in(context.invocation_metadata())
        notes = PrefillNotes(self._worker.tracing.begin("prefill", parent))
        async with failures_as_status(context, None, _log, describe):
            with recording(notes.trace, notes.record), self._worker.session():
                await context.send_initial_metadata(HELD_METADATA)
                await self._run(requests, context, context.cancelled, notes)

    async def _run(
        self,
        requests: AsyncIterator[worker_pb2.PrefillSessionRequest],
        writer: MessageWriter,
        is_broken: Callable[[], bool] = lambda: False,
        notes: PrefillNotes | None = None,
    ) -> None:
        notes = notes or PrefillNotes(NO_TRACE)
        log_context = LogContext(notes.trace.context)
        bind(log_context)
        opening = await anext(aiter(requests), None)
        if opening is None or opening.WhichOneof("event") != "open":
            raise EventOrderError("the first event of a prefill session must be open")
        check_id(opening.open.session_id, "open.session_id")
        check_id(opening.open.cache_salt, "open.cache_salt")
        log_context.session_id = opening.open.session_id
        notes.session_id = opening.open.session_id
        sampling = codec.decode(SamplingParameters, opening.open.sampling)
        sampling.validate(self._worker.engine.info.vocab_size)
        tenant = codec.decode(TenantShare, opening.open.tenant)
        tenant.validate("open.tenant")
        request_id = unique_id(opening.open.session_id)
        session = PrefillSession(
            self._worker.engine,
            request_id,
            sampling,
            opening.open.cache_salt,
            tenant=tenant,
            trace=notes.trace.recorded_context,
            ttft_slo_ms=opening.open.ttft_slo_ms,
        )
        order = await self._ordered(request_id, sampling)
        run = _SessionRun(session, writer, notes, partial(self._uses.count, tenant.name), order)
        is_read = False
        try:
            await run.until_sampled(requests)
            # The request stream of a broken RPC may end like that of a closed one.
            is_read = not is_broken()
        finally:
            # A broken RPC says nothing about decode, which may be reading the hand-over:
            # blocks that are overwritten would give it wrong KV. Decode notifies this
            # engine when it has read, or will not; otherwise the lease ends.
            if is_read or not run.has_handed_over:
                # Shielded: a second cancellation must not leak blocks.
                await asyncio.shield(session.cancel())

    async def _ordered(self, request_id: str, sampling: SamplingParameters) -> GrammarOrder | None:
        """Makes the engine compile the structured output, before it has any token."""
        if sampling.structured_output is None:
            return None
        name = unique_id(f"{request_id}-grammar")
        output, worker = sampling.structured_output, self._worker
        order = GrammarOrder(worker.engine, name, output, worker.grammars.compiled)
        await order.begin()
        return order


class _SessionRun:
    """The reader and the writer of one session's RPC."""

    def __init__(
        self,
        session: PrefillSession,
        writer: MessageWriter,
        notes: PrefillNotes,
        count_answer: Callable[[int], AnswerCount],
        order: GrammarOrder | None = None,
    ) -> None:
        self._notes = notes
        self._count_answer = count_answer
        # None before its first token, and of an answer that does not go on here.
        self._answer: AnswerCount | None = None
        # Compiles the structured output, if there is one.
        self._order = order
        self._session = session
        self._writer = writer
        self._num_logprobs = session.num_logprobs
        self._begun = asyncio.Event()
        self._has_first_token = False
        # From then on decode may read the blocks.
        self.has_handed_over = False

    async def until_sampled(
        self, requests: AsyncIterator[worker_pb2.PrefillSessionRequest]
    ) -> None:
        """Returns after the last token that is sampled here, and after the router has closed its side."""
        with single_error():
            async with TaskGroup() as tasks:
                tasks.create_task(self._read(requests))
                tasks.create_task(self._write())
                if self._order is not None:
                    tasks.create_task(self._order.compiled())

    async def _read(self, requests: AsyncIterator[worker_pb2.PrefillSessionRequest]) -> None:
        sealed = False
        async for request in requests:
            event = request.WhichOneof("event")
            if sealed or event not in ("splice", "seal"):
                raise EventOrderError(f"unexpected {event} in a prefill session")
            sealed = event == "seal"
            await self._apply(request)
        if not sealed:
            raise EventOrderError("the prefill session was closed before its seal")

    async def _apply(self, request: worker_pb2.PrefillSessionRequest) -> None:
        seal = request.WhichOneof("event") == "seal"
        splice = request.seal.splice if seal else request.splice
        self._notes.spliced(splice, seal=seal)
        await self._session.splice(
            splice.revision,
            splice.keep_tokens,
            token_list(splice.token_ids, "splice.token_ids"),
            seal=seal,
            hand_over=request.seal.hand_over,
            stable_tokens=splice.stable_tokens,
            ttft_left_ms=request.seal.ttft_left_ms,
            answer_tokens=request.seal.answer_tokens,
            answer_max_tokens=request.seal.answer_max_tokens,
        )
        if self._session.outputs is not None:
            self._begun.set()
        else:
            # No token yet, so the engine knows nothing of this session.
            await self._send_progress(PrefillProgress(splice.revision))

    async def _write(self) -> None:
        try:
            await self._write_outputs()
        finally:
            if self._answer is not None:
                self._answer.leave()

    async def _write_outputs(self) -> None:
        await self._begun.wait()
        assert self._session.outputs is not None
        async for output in prefill_outputs(self._session.outputs):
            if output.offer is not None:
                self._notes.offered(output.offer["num_tokens"])
                await self._writer.write(_offer(output.offer))
                continue
            if output.sampled is not None and self._has_first_token:
                step = codec.fields(token_step(output.sampled, self._num_logprobs))
                if self._answer is not None:
                    self._answer.stepped(len(output.sampled.token_ids))
                await self._writer.write(worker_pb2.PrefillSessionResponse(step=step))
                continue
            self._notes.reported(output.progress)
            if output.sampled is None:
                await self._send_progress(_progress(output.progress))
            else:
                self._notes.first_token(is_handed_over=output.handover is not None)
                await self._send_first_token(output)

    async def _send_progress(self, progress: PrefillProgress) -> None:
        message = worker_pb2.PrefillSessionResponse(progress=codec.fields(progress))
        await self._writer.write(message)

    async def _send_first_token(self, output: PrefillOutput) -> None:
        assert output.sampled is not None
        step = token_step(output.sampled, self._num_logprobs)
        self._has_first_token = True
        first = worker_pb2.FirstToken(
            step=codec.fields(step),
            progress=codec.fields(_progress(output.progress)),
            uncomputed_at_seal_tokens=output.progress["uncomputed_at_seal_tokens"],
        )
        if output.handover is None and output.sampled.finish_reason is None:
            self._answer = self._count_answer(output.progress["known_tokens"] + 1)
        if output.handover is not None:
            self.has_handed_over = True
            first.handover.CopyFrom(_handover(output.handover))
            # The engine finishes the answer here, at its max_tokens of 1; with a
            # hand-over that is not the end, because decode continues.
            first.step.ClearField("finish_reason")
        await self._writer.write(worker_pb2.PrefillSessionResponse(first_token=first))


def _offer(offer: dict[str, Any]) -> worker_pb2.PrefillSessionResponse:
    """Returns the message for an offer from `Offering`."""
    message = worker_pb2.HandoverOffer(
        revision=offer["revision"],
        num_tokens=offer["num_tokens"],
        handover=_handover(offer["params"]),
    )
    return worker_pb2.PrefillSessionResponse(offer=message)


def _handover(params: dict[str, Any]) -> worker_pb2.Handover:
    """Returns a hand-over from vLLM's transfer parameters."""
    others = {key: value for key, value in params.items() if key != DIGEST_KEY}
    return worker_pb2.Handover(
        kv_transfer_params_json=json.dumps(others),
        num_blocks=sum(map(len, params["remote_block_ids"])),
        kv_digest=params.get(DIGEST_KEY, b""),
    )


def _progress(figures: dict[str, Any]) -> PrefillProgress:
    """The figures of a session as `SessionState.progress` makes them."""
    delay = figures.get("delay")
    counts = {name: figures[name] for name in _COUNTS if name in figures}
    return PrefillProgress(**counts, delay=DelayReason(delay) if delay else None)


_COUNTS = [each.name for each in fields(PrefillProgress) if each.name != "delay"]
