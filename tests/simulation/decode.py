"""A model of a decode worker's service: it answers from the KV that it has read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from stream2llm.api.errors import InternalError, OverloadedError, UnavailableError, describe
from stream2llm.api.handover import ACCEPTED_METADATA, NO_FETCHED_TOKENS
from stream2llm.api.rpc_status import abort
from stream2llm.api.v1 import inference_pb2, worker_pb2_grpc
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.engine.worker_sessions import WorkerSessions
from stream2llm.serving.mux.served_call import MessageWriter
from stream2llm.serving.rpc.stream_writer import PeerGoneError, failures_as_status
from stream2llm.serving.sessions.token_bytes import token_list
from tests.simulation.answers import AnswerMemory
from tests.simulation.engine import Engine
from tests.simulation.kv import LEASE_S, num_blocks

_logger = logging.getLogger(__name__)


class ModelDecode(worker_pb2_grpc.DecodeServiceServicer, worker_pb2_grpc.HandoverServiceServicer):
    """Serves the answers of one engine."""

    def __init__(
        self,
        engine: Engine,
        sessions: WorkerSessions,
        is_full: Callable[[], bool],
        answers: AnswerMemory | None,
    ) -> None:
        """Without `answers` there is memory for all."""
        self._answers = answers
        self._engine = engine
        self._sessions = sessions
        self._is_full = is_full
        # The tokens that the RPCs of fetches know, and how many fetches they have had.
        self._known: dict[str, tuple[list[int], int]] = {}

    # -- answers ----------------------------------------------------------------------

    async def Decode(self, request: Any, context: Any) -> None:  # noqa: N802
        async with failures_as_status(context, None, _logger, describe):
            prompt = self._prompt_of(request)
            if request.refuse_when_full and self._sessions.is_draining:
                raise UnavailableError("the worker is draining", reason="DRAINING")
            if request.refuse_when_full and self._has_no_room(prompt):
                raise UnavailableError("no room", reason="FULL")
        try:
            await context.send_initial_metadata(ACCEPTED_METADATA)
        except BaseException:
            self._engine.fabric.release(self._engine.memory, request.handover)
            raise
        async with failures_as_status(context, None, _logger, describe):
            with self._sessions.reported():
                await self._answer(request, prompt, context)

    def _prompt_of(self, request: Any) -> list[int]:
        tokens = token_list(request.token_ids, "token_ids")
        if not request.keep_tokens:
            return tokens
        known, num_fetches = self._known.get(request.fetch_session_id, ([], 0))
        if num_fetches != request.num_fetches:
            raise UnavailableError("other fetches", reason=NO_FETCHED_TOKENS)
        return known[: request.keep_tokens] + tokens

    def _has_no_room(self, prompt: list[int]) -> bool:
        num_free = None if self._answers is None else self._answers.num_free
        is_short = num_free is not None and num_free < num_blocks(len(prompt))
        return self._is_full() or is_short

    async def _answer(self, request: Any, prompt: list[int], writer: MessageWriter) -> None:
        memory, session = self._engine.memory, object()
        is_read = False
        try:
            self._sessions.require_open()
            self._engine.require_alive()
            with self._sessions.one():
                memory.sessions[session] = len(prompt)
                await self._until_room(session, request, len(prompt))
                known = await self._engine.fabric.read(memory, request.handover)
                is_read = True
                sequence = [*known, prompt[-1]]
                if sequence != prompt:
                    raise InternalError("the hand-over has the KV of another sequence")
                await self._steps(session, request, sequence, writer)
        finally:
            memory.sessions.pop(session, None)
            if self._answers is not None:
                self._answers.leave(session)
            if not is_read and not self._engine.is_dead:
                self._engine.fabric.release(memory, request.handover)

    async def _until_room(self, session: object, request: Any, num_tokens: int) -> None:
        """Waits for the memory of the prompt; heartbeats keep its KV at prefill meanwhile."""
        if self._answers is None:
            return
        waiting = asyncio.create_task(self._answers.hold(session, num_tokens))
        try:
            while not (await asyncio.wait({waiting}, timeout=LEASE_S / 3))[0]:
                self._engine.fabric.heartbeat(self._engine.memory, request.handover)
                self._engine.require_alive()
        finally:
            waiting.cancel()

    async def _steps(
        self, session: object, request: Any, sequence: list[int], writer: MessageWriter
    ) -> None:
        index, sampling = request.answer_tokens, request.sampling
        while True:
            if self._answers is not None:
                await self._answers.hold(session, len(sequence) + 1)
            await self._engine.step()
            step = self._engine.brain.step(sequence, index, sampling)
            sequence.extend(step.token_ids)
            index += 1
            if index >= sampling.max_tokens and not step.finish_reason:
                step.finish_reason = inference_pb2.FINISH_REASON_LENGTH
            await writer.write(pb.DecodeResponse(step=step, local_tokens=0))
            if step.finish_reason:
                return

    # -- KV before the answer --------------------------------------------------------

    async def PrefetchKv(self, requests: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        async with failures_as_status(context, None, _logger, describe):
            self._sessions.require_open()
            self._engine.require_alive()
            await self._fetches(requests, context)

    async def _fetches(self, requests: AsyncIterator[Any], writer: MessageWriter) -> None:
        name, tokens, num_fetches = "", list[int](), 0
        fetch: asyncio.Task[None] | None = None
        try:
            async for request in requests:
                match request.WhichOneof("event"):
                    case "open":
                        name = request.open.fetch_session_id
                    case "fetch":
                        if fetch is not None:
                            await asyncio.wait({fetch})
                        new = token_list(request.fetch.token_ids, "token_ids")
                        tokens[request.fetch.keep_tokens :] = new
                        num_fetches += 1
                        self._known[name] = (list(tokens), num_fetches)
                        handover = request.fetch.handover
                        fetch = asyncio.create_task(self._fetch(list(tokens), handover, writer))
                        await asyncio.sleep(0)  # it has to release what it does not read
                    case "abort" if fetch is not None:
                        fetch.cancel("abort")
        finally:
            self._known.pop(name, None)
            if fetch is not None:
                fetch.cancel()
                await asyncio.wait({fetch})

    async def _fetch(self, tokens: list[int], handover: pb.Handover, writer: MessageWriter) -> None:
        end = pb.FETCH_END_FETCHED
        memory = self._engine.memory
        try:
            if self._answers is not None and self._answers.num_free < handover.num_blocks:
                raise OverloadedError("no room", reason="FULL")
            known = await self._engine.fabric.read(memory, handover)
            if list(known) != tokens:
                _logger.error("wrong_kv tokens=%s known=%s", tokens, known, exc_info=True)
        except OverloadedError:
            end = pb.FETCH_END_REFUSED
            self._engine.fabric.release(memory, handover)
        except UnavailableError:
            end = pb.FETCH_END_FAILED
        except asyncio.CancelledError as cancelled:
            self._engine.fabric.release(memory, handover)
            if cancelled.args != ("abort",):
                raise
            end = pb.FETCH_END_ABORTED
        try:
            await writer.write(pb.PrefetchKvResponse(end=end, num_blocks=handover.num_blocks))
        except PeerGoneError:
            return

    async def ReleaseHandover(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self._engine.is_dead:
            await abort(context, UnavailableError("dead", reason="WORKER_LOST"))
        self._engine.fabric.release(self._engine.memory, request.handover)
        return pb.ReleaseHandoverResponse()
