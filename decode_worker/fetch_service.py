"""Serves one PrefetchKv RPC: translates its messages to fetches, and their results back.

A reader takes the router's messages while a fetch is under way, so that the router
can abort it. The failure of a fetch does not fail the RPC.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from decode_worker.fetch_orders import FetchEnd, FetchResult
from decode_worker.fetch_sessions import FetchSession, FetchSessions
from decode_worker.session_spans import PrefetchNotes
from stream2llm.api import codec
from stream2llm.api.errors import EventOrderError, InvalidRequestError, Stream2LLMError
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.api.v1 import worker_pb2
from stream2llm.engine.structured_output import GrammarOrder
from stream2llm.engine.worker import EngineWorker
from stream2llm.serving.mux.served_call import MessageWriter
from stream2llm.serving.observability.log_context import LogContext, bind
from stream2llm.serving.observability.tracing import NO_TRACE
from stream2llm.serving.rpc.stream_writer import PeerGoneError
from stream2llm.serving.sessions.ids import unique_id
from stream2llm.serving.sessions.request_check import check_id
from stream2llm.serving.sessions.token_bytes import token_list

_log = logging.getLogger(__name__)

# Returns vLLM's transfer parameters of a hand-over; raises InvalidRequestError.
CheckHandover = Callable[[worker_pb2.Handover], dict[str, Any]]

_ENDS: dict[FetchEnd, Any] = {
    FetchEnd.FETCHED: worker_pb2.FETCH_END_FETCHED,
    FetchEnd.REFUSED: worker_pb2.FETCH_END_REFUSED,
    FetchEnd.ABORTED: worker_pb2.FETCH_END_ABORTED,
    FetchEnd.FAILED: worker_pb2.FETCH_END_FAILED,
}


async def serve_fetches(
    worker: EngineWorker,
    sessions: FetchSessions,
    requests: AsyncIterator[worker_pb2.PrefetchKvRequest],
    writer: MessageWriter,
    check: CheckHandover,
    notes: PrefetchNotes | None = None,
) -> None:
    """Serves until the router closes its side; raises errors that end the RPC.

    `check` returns the transfer parameters of each fetch's hand-over, or raises.
    """
    messages = aiter(requests)
    opening = await anext(messages, None)
    if opening is None:
        return  # the session ended before anything was offered to it
    if opening.WhichOneof("event") != "open":
        raise EventOrderError("the first event of KV prefetch must be open")
    check_id(opening.open.fetch_session_id, "open.fetch_session_id", may_be_empty=False)
    check_id(opening.open.cache_salt, "open.cache_salt")
    notes = notes or PrefetchNotes(NO_TRACE)
    notes.session_id = opening.open.fetch_session_id
    bind(LogContext(notes.trace.context, opening.open.fetch_session_id))
    worker.require_open()
    async with _compiling(worker, opening.open):
        with sessions.open(opening.open.fetch_session_id, opening.open.cache_salt) as session:
            await _Rpc(worker, session, writer, check, notes).run(messages)


@asynccontextmanager
async def _compiling(worker: EngineWorker, opening: worker_pb2.OpenPrefetch) -> AsyncIterator[None]:
    """Compiles the session's structured output meanwhile, if it has one."""
    if not opening.HasField("structured_output"):
        yield
        return
    output = codec.decode(StructuredOutput, opening.structured_output)
    output.validate()
    name = unique_id(f"{opening.fetch_session_id}-grammar")
    order = GrammarOrder(worker.engine, name, output, worker.grammars.compiled)
    compiling = asyncio.create_task(_compile(order))
    try:
        yield
    finally:
        compiling.cancel()
        await asyncio.wait({compiling})


async def _compile(order: GrammarOrder) -> None:
    """Prefill refuses what cannot be compiled; without it here, the answer would wait for it."""
    try:
        await order.begin()
        await order.compiled()
    except Stream2LLMError as error:
        _log.warning("grammar_not_compiled error=%s", error)
    except Exception:  # a bug: the answer's own request shows it
        _log.exception("grammar_not_compiled")


class _Rpc:
    def __init__(
        self,
        worker: EngineWorker,
        session: FetchSession,
        writer: MessageWriter,
        check: CheckHandover,
        notes: PrefetchNotes,
    ) -> None:
        self._notes = notes
        self._worker = worker
        self._check = check
        self._session = session
        self._writer = writer
        self._fetch: asyncio.Task[None] | None = None
        # False as soon as the result is known: after it is sent, the router may send the next
        # fetch before the task of this one is done.
        self._is_fetching = False

    async def run(self, messages: AsyncIterator[worker_pb2.PrefetchKvRequest]) -> None:
        try:
            async for message in messages:
                await self._apply(message)
        finally:
            if self._fetch is not None:
                # Also ends the request at the engine.
                self._fetch.cancel()
                await asyncio.wait({self._fetch})

    async def _apply(self, message: worker_pb2.PrefetchKvRequest) -> None:
        match message.WhichOneof("event"):
            case "fetch":
                await self._begin(message.fetch)
            case "abort":
                await self._session.abort()
            case event:
                raise EventOrderError(f"unexpected {event} during a KV prefetch")

    async def _begin(self, fetch: worker_pb2.FetchKv) -> None:
        if self._is_fetching:
            raise EventOrderError("the previous fetch has not ended")
        if self._fetch is not None:
            await asyncio.wait({self._fetch})
        # Before any failure: the router regards these tokens as sent.
        self._session.spliced(fetch.keep_tokens, token_list(fetch.token_ids, "fetch.token_ids"))
        self._is_fetching = True
        self._fetch = asyncio.create_task(self._serve(fetch))
        # A task that is cancelled before its first step does not run at all, and this one
        # has to notify prefill of the blocks.
        await asyncio.sleep(0)

    async def _serve(self, fetch: worker_pb2.FetchKv) -> None:
        begin_s = self._notes.trace.now_s()
        try:
            result = await self._result_or_failure(fetch)
        finally:
            self._is_fetching = False
        self._notes.fetched(begin_s, self._session.num_tokens, result)
        try:
            await self._send(result)
        except PeerGoneError:
            return  # gRPC is about to cancel the handler

    async def _result_or_failure(self, fetch: worker_pb2.FetchKv) -> FetchResult:
        """Returns failures as a result: the router waits for the end of each fetch."""
        try:
            return await self._result(fetch)
        except Stream2LLMError as error:
            _log.warning("fetch_failed session_id=%s error=%s", self._session.session_id, error)
            return FetchResult(FetchEnd.FAILED, error.message)
        except Exception as error:
            # Any type: the engine may be dead.
            _log.exception("fetch_failed session_id=%s", self._session.session_id)
            return FetchResult(FetchEnd.FAILED, str(error))

    async def _result(self, fetch: worker_pb2.FetchKv) -> FetchResult:
        transfer = self._check(fetch.handover)
        if self._worker.is_draining:
            await self._reject(transfer)
            return FetchResult(FetchEnd.REFUSED, "draining")
        try:
            check_num_tokens(self._session.num_tokens, transfer)
        except InvalidRequestError:
            await self._reject(transfer)
            raise
        return await self._session.fetch(transfer)

    async def _reject(self, transfer: dict[str, Any]) -> None:
        """Notifies prefill that its blocks will not be read, even in a cancelled task."""
        name = unique_id(self._session.session_id)
        await asyncio.shield(self._worker.engine.reject_handover(name, transfer))

    async def _send(self, result: FetchResult) -> None:
        message = worker_pb2.PrefetchKvResponse(
            end=_ENDS[result.end], reason=result.reason, num_blocks=result.num_blocks
        )
        await self._writer.write(message)


def check_num_tokens(num_tokens: int, transfer: dict[str, Any]) -> None:
    """Raises InvalidRequestError unless a hand-over is the KV of `num_tokens` tokens.

    Otherwise the KV of one prefix would enter the prefix cache as that of another.
    """
    num_offered = transfer.get("remote_num_tokens")
    if num_offered != num_tokens:
        raise InvalidRequestError(
            f"the fetch is of {num_tokens} tokens, its hand-over is the KV of {num_offered}",
            reason="TOKENS_DIFFER",
            field="fetch.token_ids",
        )
