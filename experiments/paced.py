"""One prefill worker alone, fed with context at given seconds or at given steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stream2llm.simulator.cluster import Cluster, ClusterSettings
from stream2llm.simulator.prefill import PrefillWorker
from stream2llm.simulator.prefill_settings import Counters
from stream2llm.simulator.work import Task, in_order


@dataclass(frozen=True, slots=True)
class Tally:
    """What a run came to; seconds are virtual."""

    counters: Counters
    # From the seal to the first token, of each session.
    ttfts_s: list[float]

    @property
    def busy_s(self) -> float:
        """Seconds of all steps, without waiting for context."""
        return self.counters.busy_s


def play(worker: PrefillWorker, asked: Sequence[Task]) -> Tally:
    """Runs until every session is answered; context comes at its second."""
    run = Cluster(ClusterSettings(), [worker]).play(asked, "", "")
    ttfts_s = [each.ttft_s for each in run.sessions if each.ttft_s is not None]
    return Tally(worker.counters, ttfts_s)


def play_by_steps(worker: PrefillWorker, asked: Sequence[Task]) -> Tally:
    """The same, but the times of the tasks are numbers of steps, however long steps take.

    Steps with nothing to do count too, and take no time.
    """
    coming = list(in_order(asked))[::-1]
    sealed_s, ttfts_s = dict[str, float](), list[float]()
    now_s, num_steps = 0.0, 0
    while coming or worker.num_sessions:
        while coming and coming[-1][0].at_s <= num_steps:
            change, task = coming.pop()
            worker.change(task.name, change)
            if change.seals:
                sealed_s[task.name] = now_s
        result = worker.begin_step()
        assert result or coming, "sessions wait, and nothing will ever come"
        num_steps += 1
        if result is not None:
            now_s += result.seconds
            worker.end_step(result)
            for name in result.answered:
                worker.release(name)
                ttfts_s.append(now_s - sealed_s[name])
    return Tally(worker.counters, ttfts_s)
