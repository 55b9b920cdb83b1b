"""A model of a prefill worker's service: it speaks the protocol, and checks it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from stream2llm.api.errors import InternalError, Stream2LLMError, describe
from stream2llm.api.handover import HELD_METADATA
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.api.v1 import worker_pb2_grpc
from stream2llm.engine.worker_sessions import WorkerSessions
from stream2llm.serving.rpc.stream_writer import StreamWriter, failures_as_status
from tests.simulation.engine import Engine
from tests.simulation.kv import BLOCK_TOKENS

_logger = logging.getLogger(__name__)
# Most tokens that one step computes of one session.
_CHUNK_TOKENS = 16


@dataclass(eq=False)
class Prefilled:
    """One session: its tokens, and how many of them are computed."""

    opening: Any
    sequence: list[int] = field(default_factory=list)
    computed: int = 0
    # All that was computed, and what of it was in vain.
    num_computed: int = 0
    invalidated: int = 0
    revision: int = 0
    stable_tokens: int = 0
    seal: Any = None
    uncomputed_at_seal: int = 0
    # Those of the present offer, and its name.
    offered: int = 0
    offer: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def num_to_compute(self) -> int:
        """The last token waits for the seal."""
        held_back = 0 if self.seal else 1
        return max(len(self.sequence) - held_back - self.computed, 0)

    def apply(self, request: Any) -> None:
        """Takes a splice or the seal; raises InternalError for one that makes no sense."""
        is_seal = request.HasField("seal")
        splice = request.seal.splice if is_seal else request.splice
        in_order = self.seal is None and splice.revision > self.revision
        if not in_order or splice.keep_tokens > len(self.sequence):
            raise InternalError(f"the router has sent a splice that cannot be: {request}")
        self.sequence[splice.keep_tokens :] = splice.token_ids
        self.invalidated += max(self.computed - splice.keep_tokens, 0)
        self.computed = min(self.computed, splice.keep_tokens)
        self.offered = min(self.offered, splice.keep_tokens)
        self.revision, self.stable_tokens = splice.revision, splice.stable_tokens
        if is_seal:
            self.seal = request.seal
            self.uncomputed_at_seal = self.num_to_compute
        self.changed.set()

    def progress(self) -> pb.PrefillProgress:
        return pb.PrefillProgress(
            revision=self.revision,
            known_tokens=len(self.sequence),
            prefilled_tokens=self.computed,
            computed_tokens=self.num_computed,
            invalidated_tokens=self.invalidated,
        )


class ModelPrefill(worker_pb2_grpc.PrefillServiceServicer):
    """Serves the sessions of one engine."""

    def __init__(self, engine: Engine, sessions: WorkerSessions) -> None:
        self._engine = engine
        self._sessions = sessions

    async def PrefillSession(self, requests: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        writer = StreamWriter(context)
        async with failures_as_status(context, writer, _logger, describe):
            self._sessions.require_open()
            self._engine.require_alive()
            with self._sessions.one():
                await writer.begin(HELD_METADATA)
                await self._run(requests, writer, context)

    async def _run(self, requests: AsyncIterator[Any], writer: StreamWriter, context: Any) -> None:
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
                handover = await self._prefill(session, writer)
                await reading
                dead.cancel()
            if handover is not None and not context.cancelled():
                self._engine.fabric.release(memory, handover)
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            del memory.sessions[session]

    async def _read(self, session: Prefilled, requests: AsyncIterator[Any]) -> None:
        async for request in requests:
            session.apply(request)

    async def _fail_when_dead(self) -> None:
        await self._engine.wait_dead()
        self._engine.require_alive()

    async def _prefill(self, session: Prefilled, writer: StreamWriter) -> pb.Handover | None:
        """Computes until the first token is sent; returns its hand-over."""
        while session.seal is None or session.num_to_compute:
            if not session.num_to_compute:
                session.changed.clear()
                await session.changed.wait()
                continue
            await self._engine.step()
            num_tokens = min(session.num_to_compute, _CHUNK_TOKENS)
            session.computed += num_tokens
            session.num_computed += num_tokens
            self._engine.computed[session.opening.session_id] += num_tokens
            self._engine.memory.sessions[session] = session.computed
            await writer.write(pb.PrefillSessionResponse(progress=session.progress()))
            await self._offer(session, writer)
        return await self._first_token(session, writer)

    async def _offer(self, session: Prefilled, writer: StreamWriter) -> None:
        """Offers what is stable and was not offered yet; one offer at a time."""
        stable = min(session.stable_tokens, session.computed)
        stable -= stable % BLOCK_TOKENS
        memory = self._engine.memory
        if session.offer in memory.kept or session.seal or stable <= session.offered:
            return
        handover = memory.keep(session.opening.session_id, session.sequence[:stable])
        session.offer, session.offered = next(reversed(memory.kept)), stable
        offer = pb.HandoverOffer(revision=session.revision, num_tokens=stable, handover=handover)
        await writer.write(pb.PrefillSessionResponse(offer=offer))

    async def _first_token(self, session: Prefilled, writer: StreamWriter) -> pb.Handover | None:
        await self._engine.step()
        opening, seal = session.opening, session.seal
        step = self._engine.brain.step(session.sequence, seal.answer_tokens, opening.sampling)
        first = pb.FirstToken(
            step=step,
            progress=session.progress(),
            uncomputed_at_seal_tokens=session.uncomputed_at_seal,
        )
        handover = None
        if seal.hand_over and not step.finish_reason:
            handover = self._engine.memory.keep(opening.session_id, session.sequence)
            first.handover.CopyFrom(handover)
        await writer.write(pb.PrefillSessionResponse(first_token=first))
        return handover


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of ours among those of a session's tasks, if there is one."""
    ours = (each for each in group.exceptions if isinstance(each, Stream2LLMError))
    return next(ours, group.exceptions[0])
