"""Progress of a benchmark, and an estimate of the time that is left."""

from __future__ import annotations

from dataclasses import replace

from experiments.baselines.cells import NON_STREAMING, Comparison, Options, Turn, cells_of, turns
from experiments.baselines.scaling import Pace
from experiments.baselines.schedule import prefills_of
from stream2llm.serving.system.clock import Clock
from stream2llm.workload.traces.format import Shape

# Seconds of a run beside playing: emptying caches, making token ids, writing the record.
BETWEEN_S = 2.5
# Seconds to start all engines of a shape, or whole systems.
STARTS_S = 100.0


class Progress:
    """Counts what a benchmark has done since this was made, and estimates the seconds that are left."""

    def __init__(self, options: Options, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self.paces: dict[tuple[Comparison, Shape], Pace] = {}
        self.done: set[Turn] = set()

    def say(self, line: str) -> None:
        """One line, with the time since the beginning."""
        passed_s = self._clock.monotonic_s() - self._began_s
        print(f"[{int(passed_s) // 60:3d}:{int(passed_s) % 60:02d}] {line}", flush=True)

    def left_s(self) -> float:
        """About how long the rest takes; not before the first pace is known."""
        options, total = self._options, 0.0
        for comparison in options.comparisons:
            for shape in options.shapes:
                cells = cells_of(comparison, shape, options.loads)
                prefill_s = self._prefill_s(comparison, shape)
                plan = turns(cells, options.policies, options.repetitions)
                left = [turn for turn in plan if turn not in self.done]
                total += sum(BETWEEN_S + self._prefills(turn) * prefill_s for turn in left)
                if (comparison, shape) not in self.paces:
                    total += STARTS_S
        return total

    def _prefills(self, turn: Turn) -> float:
        one = replace(turn, system=NON_STREAMING)  # All systems' traces are as long as this one's.
        return prefills_of(one, self._options.num_sessions, self._options.retrieval_factor)

    def _prefill_s(self, comparison: Comparison, shape: Shape) -> float:
        """Measured, or that of the newest one that was."""
        newest = list(self.paces.values())[-1]
        pace = self.paces.get((comparison, shape), Pace(shape, newest.tokens_per_s))
        return pace.prefill_s
