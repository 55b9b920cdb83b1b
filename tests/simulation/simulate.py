"""Runs seeds: one virtual loop each, everything noted that must not happen."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from router.tokenizer import ModelTokenizer
from tests.simulation.client import Outcome
from tests.simulation.invariants import leftovers, violations
from tests.simulation.loop import PROCESS, StuckError, VirtualLoop
from tests.simulation.script import Script
from tests.simulation.vocabulary import tiny_tokenizer
from tests.simulation.world import World

# In virtual time; no run takes longer.
_TIME_LIMIT_S = 1500.0


@dataclass
class Report:
    """What a run has shown."""

    script: Script
    outcomes: list[Outcome] = field(default_factory=list)
    # What was not as it has to be; empty: nothing.
    violations: list[str] = field(default_factory=list)
    num_steps: int = 0
    ended_at_s: float = 0.0

    def __str__(self) -> str:
        script = self.script
        return "\n".join(
            [
                f"seed {script.seed}: {' '.join(script.roles)}{script.traits};"
                f" {self.num_steps} steps, {self.ended_at_s:.1f} s",
                *(f"  fault: {each}" for each in script.faults),
                *(f"  {each}" for each in self.outcomes),
                *(f"  VIOLATION: {each}" for each in self.violations),
            ]
        )


class Complaints(logging.Handler):
    """Exceptions that were logged, or that nothing has handled, of living processes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and _is_alive():
            self.found.append(f"logged {record.name}: {self.format(record)}")

    def unhandled(self, _loop: Any, context: dict[str, Any]) -> None:
        if _is_alive():
            error = context.get("exception")
            self.found.append(f"unhandled: {context['message']} {error!r}")


def _is_alive() -> bool:
    process = PROCESS.get()
    return process is None or process.is_alive


def simulate(script: Script, tokenizer: ModelTokenizer) -> Report:
    """Runs one script; its report says what was wrong."""
    report = Report(script)
    loop = VirtualLoop(Random(f"loop {script.seed}"))
    with _watched(loop) as complaints:
        try:
            loop.run_until_complete(_run(script, loop, tokenizer, report))
        except (StuckError, TimeoutError) as error:
            report.violations.append(f"nothing ends: {error!r}")
        finally:
            loop.close()
    report.violations += complaints.found
    report.num_steps, report.ended_at_s = loop.num_steps, loop.time()
    return report


async def _run(
    script: Script, loop: VirtualLoop, tokenizer: ModelTokenizer, report: Report
) -> None:
    world = World(script, loop, tokenizer)
    try:
        async with asyncio.timeout(_TIME_LIMIT_S):
            await world.run()
        report.violations += violations(world)
        await world.close()
        report.violations += leftovers(world)
    finally:
        report.outcomes += [client.outcome for client in world.clients]
        for process in world.processes:
            process.kill()
        await asyncio.sleep(1.0)


@contextmanager
def _watched(loop: VirtualLoop) -> Iterator[Complaints]:
    complaints = Complaints()
    loop.set_exception_handler(complaints.unhandled)
    loggers = [logging.getLogger(name) for name in ("", "router", "stream2llm")]
    gc.disable()  # collections would come at other moments each time
    gc.freeze()  # so that the collection after the run looks at what is its own
    loggers[0].addHandler(complaints)
    try:
        yield complaints
    finally:
        gc.collect()
        gc.unfreeze()
        gc.enable()
        loggers[0].removeHandler(complaints)


def simulate_seeds(seeds: Iterable[int]) -> Iterator[Report]:
    """Runs seeds one after the other; yields a report of each."""
    tokenizer = tiny_tokenizer()
    for seed in seeds:
        yield simulate(Script.draw(seed), tokenizer)
