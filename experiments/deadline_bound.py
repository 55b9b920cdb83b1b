"""An upper bound, for every scheduler, on the number of answers in time.

One that knows all that will come computes each token of a sealed sequence once, when it has
come for good, and nothing that an update throws away; tokens take their share of full steps.

Suppose that all that comes after some moment came at that moment. Then the fewest sessions
that miss their deadlines are those that Moore and Hodgson's algorithm drops: it goes by
deadline, and drops the largest so far when one would be late. Losses of moments that follow
each other add up, because each counts only sessions that are sealed and due between two of
them. The moments tried are those at which sessions begin. The bound may be out of reach: no
scheduler knows what will come.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from stream2llm.simulator.steps import StepLaw
from stream2llm.simulator.work import Task


@dataclass(frozen=True, slots=True)
class Demand:
    """The computation that one session needs before its deadline."""

    sealed_s: float
    due_s: float
    # When some of its final tokens come, and the seconds to compute them; the newest first.
    pieces: tuple[tuple[float, float], ...]

    def work_s(self, from_s: float) -> float:
        """Seconds to compute what comes from then on."""
        return sum(seconds for at_s, seconds in self.pieces if at_s >= from_s)


def demands(
    asked: Iterable[Task], law: StepLaw, token_budget: int, num_workers: int = 1
) -> list[Demand]:
    """Returns the demands of sessions with deadlines, on one worker as fast as `num_workers`."""
    return [
        Demand(
            each.sealed_s,
            each.sealed_s + (each.ttft_slo_s or 0.0),
            tuple(
                (at_s, least_seconds(law, token_budget, start, stop) / num_workers)
                for at_s, start, stop in final_ranges(each)
            ),
        )
        for each in asked
    ]


def final_ranges(task: Task) -> Iterator[tuple[float, int, int]]:
    """When tokens [start, stop) of the sealed sequence come for good; the newest first."""
    stop = task.num_tokens
    for change in reversed(task.changes):
        if change.num_kept < stop:
            yield change.at_s, change.num_kept, stop
            stop = change.num_kept


def least_seconds(law: StepLaw, token_budget: int, start: int, stop: int) -> float:
    """Seconds that tokens [start, stop) take at least, as a part of full steps."""
    share = (stop - start) / token_budget
    return law.seconds([(start, stop)]) - (1 - share) * law.fixed_s


def fewest_missed(sessions: Sequence[Demand]) -> int:
    """Returns a lower bound on the sessions that miss their deadlines under any schedule."""
    by_due = sorted(sessions, key=lambda each: each.due_s)
    dues_s = [each.due_s for each in by_due]
    # The most losses that are certain up to each deadline.
    certain = [0] * (len(by_due) + 1)
    for from_s in sorted(each.pieces[-1][0] for each in by_due):
        before = certain[bisect_right(dues_s, from_s)]
        for number, dropped in _missed_from(from_s, by_due):
            certain[number] = max(certain[number], before + dropped)
        for number in range(1, len(certain)):
            certain[number] = max(certain[number], certain[number - 1])
    return certain[-1]


def _missed_from(from_s: float, by_due: Sequence[Demand]) -> Iterator[tuple[int, int]]:
    """Yields pairs for sessions sealed from `from_s` on, in the order of their deadlines.

    (n, k): of the first n sessions in `by_due`, at least k miss.
    """
    kept: list[float] = []
    total_s, dropped = 0.0, 0
    for number, each in enumerate(by_due, 1):
        if each.sealed_s < from_s:
            continue
        work_s = each.work_s(from_s)
        heappush(kept, -work_s)
        total_s += work_s
        if total_s > each.due_s - from_s:
            total_s += heappop(kept)
            dropped += 1
            yield number, dropped
