"""Plays a trace onto a system in real time, open loop, and records what came back.

Sessions are independent: each keeps its own timetable, however slow the
system is. TTFT begins when the last context is submitted, with the question,
and ends when the first token reaches this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from experiments.baselines.systems import Asking, System, SystemDiedError
from experiments.token_sessions import TimedSplice, submissions
from stream2llm.serving.system.clock import Clock, SystemClock
from stream2llm.workload.records import RunRecord, SessionRecord
from stream2llm.workload.replay.lateness import LagProbe, Timetable
from stream2llm.workload.replay.plan import PlannedSession

# Sessions that arrive at the very beginning would be late.
LEAD_S = 0.2


async def run_trace(
    system: System,
    sessions: Sequence[PlannedSession],
    trace: str,
    *,
    answer_limit_s: float,
    settings: Mapping[str, str | float],
    clock: Clock | None = None,
) -> RunRecord:
    """One run; raises SystemDiedError when the system ends meanwhile.

    A session without a whole answer so long after its seal was due is given up.
    """
    clock = clock or SystemClock()
    await system.begin_run()
    probe = LagProbe(clock)
    measuring = asyncio.create_task(probe.run())
    plan = [(system.asks(each), each, submissions(each)) for each in sessions]
    begin_s = clock.monotonic_s() + LEAD_S
    runs = [_SessionRun(*each, begin_s, answer_limit_s, clock) for each in plan]
    tasks = [asyncio.create_task(run.record()) for run in runs]
    try:
        records = await asyncio.gather(*tasks)
    finally:
        for task in (*tasks, measuring):
            task.cancel()
        await asyncio.gather(*tasks, measuring, return_exceptions=True)
    counters = {**await system.end_run(), **probe.counters()}
    return RunRecord(
        system=system.name,
        trace=trace,
        duration_s=max(record.ended_s for record in records),
        sessions=tuple(records),
        counters=counters,
        settings=settings,
    )


class _SessionRun:
    """One question under way."""

    def __init__(
        self,
        asking: Asking,
        planned: PlannedSession,
        changes: Sequence[TimedSplice],
        begin_s: float,
        answer_limit_s: float,
        clock: Clock,
    ) -> None:
        self._asking = asking
        self._planned = planned
        self._changes = changes
        self._times = Timetable(begin_s, clock)
        self._answer_limit_s = answer_limit_s
        self._opened_s = 0.0
        self._sealed_s: float | None = None
        self._token_times_s: list[float] = []

    async def record(self) -> SessionRecord:
        error = ""
        limit_s = self._planned.seal_due_s + self._answer_limit_s
        try:
            async with asyncio.timeout(limit_s - self._times.now_s()):
                await self._ask()
        except TimeoutError:
            error = "no whole answer in time"
        except SystemDiedError:
            raise
        except Exception as raised:  # a failure of this session; shown, and counted
            error = f"{type(raised).__name__}: {raised}"
        ended_s = self._times.now_s()
        await self._asking.cancel()
        return self._record(error, ended_s)

    async def _ask(self) -> None:
        *before, last = self._changes
        for change in before:
            begun_s = await self._times.due(change.due_s)
            self._opened_s = self._opened_s or begun_s
            await self._asking.change(change)
            self._times.taken()
        self._sealed_s = await self._times.due(last.due_s)
        async for num_tokens in self._asking.finish(last):
            self._token_times_s += [self._times.now_s()] * num_tokens

    def _record(self, error: str, ended_s: float) -> SessionRecord:
        return SessionRecord(
            session_id=self._planned.session_id,
            due_s=self._planned.due_s,
            opened_s=self._opened_s,
            seal_due_s=self._planned.seal_due_s,
            sealed_s=self._sealed_s,
            token_times_s=tuple(self._token_times_s),
            ended_s=ended_s,
            num_prompt_tokens=self._changes[-1].num_tokens,
            lateness_s=self._times.lateness_s,
            generator_lateness_s=self._times.own_lateness_s,
            error=error,
        )
