"""Prefill whose KV memory is bounded: a prefill worker's own planner decides the steps.

Who computes, who waits for blocks and who loses them are decisions of the production code
(`stream2llm/simulator/prefill.py` composes it). What concerns sessions comes between two
steps, as in an engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from stream2llm.api.errors import UnavailableError
from stream2llm.simulator.prefill import PrefillSettings, PrefillWorker, StepResult
from stream2llm.simulator.work import Change
from tests.builders import FrozenCosts, LinearCosts
from tests.simulation.engine import Engine
from tests.simulation.kv import BLOCK_TOKENS
from tests.simulation.prefilled import Prefilled

_T = TypeVar("_T")
_COSTS = LinearCosts(token_s=0.001, block_s=0.01)


class _Worker(PrefillWorker):
    """Sessions may end before their answer."""

    def end(self, name: str) -> None:
        """Frees the blocks of a session, or of its answer."""
        if name in self._leases:
            self.release(name)
        elif name in self._sessions:
            self._blocks.let_go(self._sessions.pop(name).blocks)
            self._host.forget(name)
            self._table.close(name)


class PlannedSteps:
    """The steps of one engine."""

    def __init__(self, engine: Engine, num_blocks: int) -> None:
        settings = PrefillSettings(num_blocks, BLOCK_TOKENS, 2 * engine.chunk_tokens)
        self._engine = engine
        self._worker = _Worker(settings, lambda _: 0.0, _COSTS, FrozenCosts(_COSTS))
        self._sessions: dict[str, Prefilled] = {}
        self._num_named = 0
        self._is_stepping = False
        # To be done when the step has ended.
        self._queued: list[Callable[[], None]] = []
        self._news = asyncio.Event()

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that are held."""
        return self._worker.kv_usage

    @property
    def num_evictions(self) -> int:
        """How often a session has lost blocks to another one."""
        return self._worker.counters.recomputed_victims

    # -- between steps -----------------------------------------------------------------

    async def between_steps(self, action: Callable[[], _T]) -> _T:
        """Returns what the action does, which is done between two steps."""
        done: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._do(partial(_settle, done, action))
        return await done

    def _do(self, action: Callable[[], None]) -> None:
        self._queued.append(action)
        if not self._is_stepping:
            self._do_queued()

    def _do_queued(self) -> None:
        queued, self._queued = self._queued, []
        for action in queued:
            action()
        self._news.set()

    def change(self, session: Prefilled, request: Any) -> None:
        """The session takes a splice or its seal; raises InternalError."""
        session.apply(request)
        if not session.name:
            self._num_named += 1
            session.name = f"{session.opening.session_id}#{self._num_named}"
            self._sessions[session.name] = session
        now_s = asyncio.get_running_loop().time()
        seals = session.seal is not None
        change = Change(now_s, session.num_kept, len(session.sequence), seals)
        self._worker.change(session.name, change)
        self._update(session)

    def pin(self, session: Prefilled, num_tokens: int) -> Callable[[], None]:
        """Holds the blocks of the session's first tokens; returns what ends that."""
        blocks = self._worker.pin(session.name, num_tokens)
        return partial(self._do, partial(self._worker.unpin, blocks))

    def hand_over(self, session: Prefilled) -> Callable[[], None]:
        """The answered session's blocks stay when it has ended; returns what ends that."""
        del self._sessions[session.name]
        return partial(self._do, partial(self._worker.release, session.name))

    def end(self, session: Prefilled) -> None:
        """The session has ended; its blocks are free, unless they are handed over."""
        if self._sessions.get(session.name) is session:
            self._do(partial(self._end, session.name))

    def _end(self, name: str) -> None:
        del self._sessions[name]
        self._worker.end(name)

    # -- steps -------------------------------------------------------------------------

    async def run(self) -> None:
        """Computes until the engine is dead."""
        with suppress(UnavailableError):
            while True:
                await self._step()

    async def _step(self) -> None:
        result = self._worker.begin_step(asyncio.get_running_loop().time())
        if result is None:
            self._news.clear()
            await self._news.wait()
            return
        self._is_stepping = True
        await self._engine.step()
        self._is_stepping = False
        self._end_step(result)
        self._do_queued()

    def _end_step(self, result: StepResult) -> None:
        for name in result.computed:
            session, total = self._sessions[name], self._worker.session_counters(name).computed
            self._engine.computed[session.opening.session_id] += total - session.num_computed
            session.num_computed = total
        self._worker.end_step(result)
        for name in result.sampled:
            self._sessions[name].is_answered = True
        for session in self._sessions.values():
            self._update(session)
        for name in result.computed:
            self._sessions[name].changed.set()

    def _update(self, session: Prefilled) -> None:
        """Its computed tokens fall when it loses blocks."""
        known = len(session.sequence)
        session.computed = known if session.is_answered else self._worker.num_computed(session.name)
        if session in self._engine.memory.sessions:
            self._engine.memory.sessions[session] = session.computed


def _settle(done: asyncio.Future[_T], action: Callable[[], _T]) -> None:
    """Does it, unless the waiter has gone."""
    if done.cancelled():
        return
    try:
        done.set_result(action())
    except Exception as error:
        done.set_exception(error)
