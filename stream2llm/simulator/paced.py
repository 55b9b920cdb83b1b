"""One prefill worker alone, fed with context at given seconds or at given steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from stream2llm.simulator.crawler import Arrival
from stream2llm.simulator.prefill import Counters, PrefillWorker, StepResult
from stream2llm.simulator.work import Change


@dataclass(slots=True)
class Tally:
    """What a run came to; seconds are virtual."""

    counters: Counters
    # When the last answer began.
    end_s: float = 0.0
    # From the seal to the first token, of each session.
    ttfts_s: list[float] = field(default_factory=list)

    @property
    def busy_s(self) -> float:
        """Of steps, without waiting for context."""
        return self.counters.busy_s


def play(worker: PrefillWorker, arrivals: Iterable[Arrival]) -> Tally:
    """Runs until every session is answered; context comes at its second."""
    feed = _Feed(worker)
    coming = iter(arrivals)
    following = next(coming, None)
    while following is not None or worker.num_sessions:
        while following is not None and following.at <= feed.now_s:
            feed.arrive(following, following.at)
            following = next(coming, None)
        if not feed.step():
            assert following is not None, "sessions wait, and nothing will ever come"
            feed.now_s = max(feed.now_s, following.at)
    return feed.tally


def play_by_steps(worker: PrefillWorker, arrivals: Iterable[Arrival]) -> Tally:
    """The same, but context comes at its step, however long steps take.

    Steps with nothing to do count too, and take no time.
    """
    feed = _Feed(worker)
    coming = iter(arrivals)
    following = next(coming, None)
    num_steps = 0
    while following is not None or worker.num_sessions:
        while following is not None and following.at <= num_steps:
            feed.arrive(following, feed.now_s)
            following = next(coming, None)
        moved = feed.step()
        assert moved or following is not None, "sessions wait, and nothing will ever come"
        num_steps += 1
    return feed.tally


class _Feed:
    """The worker, its clock, and how much of each session is there."""

    def __init__(self, worker: PrefillWorker) -> None:
        self.now_s = 0.0
        self.tally = Tally(worker.counters)
        self._worker = worker
        self._num_known: dict[str, int] = {}
        self._sealed_s: dict[str, float] = {}

    def arrive(self, arrival: Arrival, at_s: float) -> None:
        """Context comes, or came at that moment; the first opens a session, the last seals it."""
        before = self._num_known.get(arrival.name, 0)
        known = self._num_known[arrival.name] = before + arrival.num_tokens
        self._worker.change(arrival.name, Change(at_s, before, known, arrival.seals))
        if arrival.seals:
            self._sealed_s[arrival.name] = at_s

    def step(self) -> bool:
        """One step, if it brings anybody further; whether it did."""
        result = self._worker.begin_step()
        if result is not None:
            self._finish(result)
        return result is not None

    def _finish(self, result: StepResult) -> None:
        self.now_s += result.seconds
        self._worker.end_step(result)
        for name in result.answered:
            self._worker.release(name)
            self.tally.ttfts_s.append(self.now_s - self._sealed_s.pop(name))
            self.tally.end_s = self.now_s
