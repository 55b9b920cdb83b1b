"""A model of a prefill worker's service: it speaks the protocol, and checks it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from stream2llm.api.errors import Stream2LLMError, describe
from stream2llm.api.handover import HELD_METADATA
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.api.v1 import worker_pb2_grpc
from stream2llm.engine.worker_sessions import WorkerSessions
from stream2llm.serving.mux.served_call import MessageWriter
from stream2llm.serving.rpc.stream_writer import failures_as_status
from tests.simulation.engine import Engine
from tests.simulation.kv import BLOCK_TOKENS
from tests.simulation.planned import PlannedSteps
from tests.simulation.prefilled import Prefilled

_logger = logging.getLogger(__name__)


class ModelPrefill(worker_pb2_grpc.PrefillServiceServicer):
    """Serves the sessions of one engine."""

    def __init__(
        self, engine: Engine, sessions: WorkerSessions, planned: PlannedSteps | None
    ) -> None:
        """Without `planned` steps its sessions take no memory from each other."""
        self._engine = engine
        self._sessions = sessions
        self._planned = planned

    async def PrefillSession(self, requests: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        async with failures_as_status(context, None, _logger, describe):
            self._sessions.require_open()
            self._engine.require_alive()
            with self._sessions.one():
                await context.send_initial_metadata(HELD_METADATA)
                await self._run(requests, context)

    async def _run(self, requests: AsyncIterator[Any], context: Any) -> None:
        opening = await anext(aiter(requests), None)
        if opening is None:
            return
        session, memory = Prefilled(opening.open), self._engine.memory
        memory.sessions[session] = 0
        handover: pb.Handover | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(session, requests))
                dead = tasks.create_task(self._fail_when_dead())
                await self._prefill(session, context)
                handover = await self._first_token(session, context)
                await reading
                dead.cancel()
            if handover is not None and not context.cancelled():
                self._engine.fabric.release(memory, handover)
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            del memory.sessions[session]
            if self._planned is not None:
                self._planned.end(session)

    async def _read(self, session: Prefilled, requests: AsyncIterator[Any]) -> None:
        async for request in requests:
            if self._planned is None:
                session.apply(request)
            else:
                planned = self._planned
                await planned.between_steps(partial(planned.change, session, request))

    async def _fail_when_dead(self) -> None:
        await self._engine.wait_dead()
        self._engine.require_alive()

    async def _prefill(self, session: Prefilled, writer: MessageWriter) -> None:
        """Returns when all of the sealed sequence is computed, and the first token with it."""
        if self._planned is None:
            await self._compute(session, writer)
            await self._engine.step()
            return
        while not session.is_answered:
            await session.changed.wait()
            session.changed.clear()
            await writer.write(pb.PrefillSessionResponse(progress=session.progress()))
            await self._offer(session, writer)

    async def _compute(self, session: Prefilled, writer: MessageWriter) -> None:
        while session.seal is None or session.num_to_compute:
            if not session.num_to_compute:
                session.changed.clear()
                await session.changed.wait()
                continue
            await self._engine.step()
            num_tokens = min(session.num_to_compute, self._engine.chunk_tokens)
            session.computed += num_tokens
            session.num_computed += num_tokens
            self._engine.computed[session.opening.session_id] += num_tokens
            self._engine.memory.sessions[session] = session.computed
            await writer.write(pb.PrefillSessionResponse(progress=session.progress()))
            await self._offer(session, writer)

    async def _offer(self, session: Prefilled, writer: MessageWriter) -> None:
        """Offers what is stable and was not offered yet; one offer at a time."""
        if self._planned is None:
            offer = self._new_offer(session)
        else:
            offer = await self._planned.between_steps(partial(self._new_offer, session))
        if offer is not None:
            await writer.write(pb.PrefillSessionResponse(offer=offer))

    def _new_offer(self, session: Prefilled) -> pb.HandoverOffer | None:
        stable = min(session.stable_tokens, session.computed)
        stable -= stable % BLOCK_TOKENS
        memory = self._engine.memory
        if session.offer in memory.kept or session.seal or stable <= session.offered:
            return None
        on_end = self._planned.pin(session, stable) if self._planned is not None else None
        handover = memory.keep(session.opening.session_id, session.sequence[:stable], on_end)
        session.offer, session.offered = next(reversed(memory.kept)), stable
        return pb.HandoverOffer(revision=session.revision, num_tokens=stable, handover=handover)

    async def _first_token(self, session: Prefilled, writer: MessageWriter) -> pb.Handover | None:
        opening, seal = session.opening, session.seal
        step = self._engine.brain.step(session.sequence, seal.answer_tokens, opening.sampling)
        first = pb.FirstToken(
            step=step,
            progress=session.progress(),
            uncomputed_at_seal_tokens=session.uncomputed_at_seal,
        )
        handover = None
        if seal.hand_over and not step.finish_reason:
            on_end = self._planned.hand_over(session) if self._planned is not None else None
            handover = self._engine.memory.keep(opening.session_id, session.sequence, on_end)
            first.handover.CopyFrom(handover)
        await writer.write(pb.PrefillSessionResponse(first_token=first))
        return handover


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of ours among those of a session's tasks, if there is one."""
    ours = (each for each in group.exceptions if isinstance(each, Stream2LLMError))
    return next(ours, group.exceptions[0])
