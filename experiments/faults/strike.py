"""Sends the signals of a plan to the processes of a cluster."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence

from experiments.faults.parts import Part, living_parts
from experiments.faults.plan import Fault, Strike, victim
from stream2llm.serving.system.processes import signal_owned


class Striker:
    """Strikes one cluster."""

    def __init__(
        self,
        cluster_id: str,
        elapsed_s: Callable[[], float],
        report: Callable[[Strike], None],
    ) -> None:
        """`elapsed_s` returns the seconds since the beginning of the load."""
        self._cluster_id = cluster_id
        self._elapsed_s = elapsed_s
        self._report = report
        self._stopped: dict[asyncio.Task[None], Part] = {}
        self.strikes: list[Strike] = []

    async def run(self, plan: Sequence[Fault]) -> None:
        """Carries the plan out; whatever it has stopped goes on at its end."""
        try:
            for fault in plan:
                await asyncio.sleep(max(0.0, fault.at_s - self._elapsed_s()))
                await self._strike(fault)
            await asyncio.gather(*self._stopped)
        finally:
            for task, part in self._stopped.items():
                task.cancel()
                signal_owned(part.process, signal.SIGCONT)  # one that goes on does not notice

    async def _strike(self, fault: Fault) -> None:
        parts = await asyncio.to_thread(living_parts, self._cluster_id)
        part = victim(fault, parts)
        how = signal.SIGKILL if fault.stopped_s is None else signal.SIGSTOP
        if part is None or not signal_owned(part.process, how):
            return  # it has ended a moment ago
        if fault.stopped_s is not None:
            self._stopped[asyncio.create_task(_go_on(part, fault.stopped_s))] = part
        strike = Strike(
            self._elapsed_s(), part.replica, part.incarnation, part.kind, fault.stopped_s
        )
        self.strikes.append(strike)
        self._report(strike)


async def _go_on(part: Part, after_s: float) -> None:
    await asyncio.sleep(after_s)
    signal_owned(part.process, signal.SIGCONT)  # unless it was killed meanwhile
