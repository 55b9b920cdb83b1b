"""Opens every session of a plan when it is due, whatever has become of those before.

One task for each session that is open, none for those to come. Clients share
the sessions in turn; each has one connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from stream2llm.api.tasks import TaskGroup
from stream2llm.client import AsyncClient
from stream2llm.serving.system.clock import Clock
from stream2llm.workload.records import SessionRecord
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.replay.session import Asking, SessionReplay


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a replay has come."""

    elapsed_s: float
    num_planned: int
    num_begun: int
    num_answered: int
    num_failed: int

    @property
    def num_open(self) -> int:
        """Begun, and neither answered nor failed."""
        return self.num_begun - self.num_answered - self.num_failed


class Driver:
    """Replays one plan once."""

    def __init__(
        self,
        plan: Sequence[PlannedSession],
        clients: Sequence[AsyncClient],
        asking: Asking,
        clock: Clock,
    ) -> None:
        self._plan = plan
        self._clients = clients
        self._asking = asking
        self._clock = clock
        self._begin_s: float | None = None
        self._begun: list[SessionReplay] = []
        self._num_answered = self._num_failed = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until all sessions have ended; `stop` cancels those that are open and opens no more."""
        begin_s = self._begin_s = self._clock.monotonic_s()
        replay = asyncio.create_task(self._replay(begin_s), name="replay")
        stopped = asyncio.create_task(stop.wait(), name="replay-stop")
        try:
            await asyncio.wait({replay, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            replay.cancel()  # does nothing when it has ended
            await asyncio.wait({replay, stopped})
        if not replay.cancelled():
            replay.result()

    def records(self) -> tuple[SessionRecord, ...]:
        """Records of every session that was begun, in the order of the plan."""
        return tuple(session.record() for session in self._begun)

    def answers(self) -> dict[str, list[int]]:
        """Token ids of every whole answer, by the trace's id of the session."""
        return {each.session_id: each.token_ids for each in self._begun if each.answered}

    def snapshot(self) -> Snapshot:
        """How far it is now."""
        return Snapshot(
            elapsed_s=self.elapsed_s,
            num_planned=len(self._plan),
            num_begun=len(self._begun),
            num_answered=self._num_answered,
            num_failed=self._num_failed,
        )

    @property
    def elapsed_s(self) -> float:
        """Since the beginning of the run; 0 before it."""
        if self._begin_s is None:
            return 0.0
        return self._clock.monotonic_s() - self._begin_s

    async def _replay(self, begin_s: float) -> None:
        async with TaskGroup() as group:
            for number, planned in enumerate(self._plan):
                left_s = planned.due_s - self.elapsed_s
                if left_s > 0:
                    await asyncio.sleep(left_s)
                group.create_task(
                    self._session(SessionReplay(planned, begin_s, self._clock), number)
                )

    async def _session(self, session: SessionReplay, number: int) -> None:
        self._begun.append(session)
        try:
            await session.run(self._clients[number % len(self._clients)], self._asking)
        finally:
            self._num_answered += session.answered
            self._num_failed += not session.answered
