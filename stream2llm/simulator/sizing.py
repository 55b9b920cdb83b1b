"""Finds the number of prefill or mixed workers that a load needs, by simulation.

Nothing is modelled here: each candidate number of workers is played by `play_trace`, and
the smallest one that meets the target is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from stream2llm.serving.settings.worker_spec import Role
from stream2llm.simulator.play_trace import Machine, Way, play_trace
from stream2llm.simulator.work import Task, with_answers_of
from stream2llm.workload.records import RunRecord
from stream2llm.workload.report.summary import latencies


@dataclass(frozen=True, slots=True)
class Target:
    """This share of the sessions, 0 to 1, has its first token so many seconds after its seal."""

    quantile: float
    ttft_s: float
    # And its further ones so many seconds one after the other, on average; None: whenever.
    token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One number of workers; latencies in seconds from the seal."""

    num_workers: int
    p50_s: float
    p95_s: float
    p99_s: float
    # At the target's quantile.
    at_quantile_s: float
    # Mean seconds between two tokens of an answer, at that quantile; None: they have one.
    token_s: float | None
    meets: bool
    # Share of all KV blocks that sessions hold: mean over time, and at most.
    kv_mean: float
    kv_peak: float
    # Share of the time, from the first arrival to the last answer, in which workers compute.
    busy: float
    # Tokens computed again because a preemption had thrown their KV away.
    recomputed: float


@dataclass(frozen=True, slots=True)
class Question:
    """A worker, how it is run, and the target; the number of such workers is searched for."""

    machine: Machine
    way: Way
    target: Target
    # Tokens of each answer, at mixed workers; prefill workers have the first one.
    num_output_tokens: int = 1
    role: Role = "prefill"

    def play(self, asked: Sequence[Task], num_workers: int) -> Trial:
        """Plays the load on so many workers."""
        is_mixed = self.role == "mixed"
        num_prefill, num_mixed = (0, num_workers) if is_mixed else (num_workers, 0)
        machine = replace(self.machine, num_prefill=num_prefill, num_decode=0, num_mixed=num_mixed)
        answered = with_answers_of(asked, self.num_output_tokens)
        return trial_of(play_trace(machine, self.way, answered, "load"), num_workers, self.target)


@dataclass(frozen=True, slots=True)
class Sizing:
    """The result of a search; `chosen` is None when no number up to `limit` meets the target."""

    limit: int
    chosen: Trial | None
    # One worker fewer than chosen, or the limit that misses the target; None below one worker.
    fewer: Trial | None
    # Everything that was played, by number.
    tried: tuple[Trial, ...]


def trial_of(run: RunRecord, num_workers: int, target: Target) -> Trial:
    """Returns the figures of a run."""
    ttft_s = latencies(run, "ttft")
    shares = (0.5, 0.95, 0.99, target.quantile)
    p50_s, p95_s, p99_s, at_quantile_s = map(float, np.quantile(ttft_s, shares))
    token_s = _token_s(run, target.quantile)
    is_fast = target.token_s is None or token_s is None or token_s <= target.token_s
    usage = [sample.kv_usage for sample in run.samples]
    counters = run.counters
    return Trial(
        num_workers,
        p50_s,
        p95_s,
        p99_s,
        at_quantile_s,
        token_s,
        meets=at_quantile_s <= target.ttft_s and is_fast,
        kv_mean=sum(usage) / len(usage),
        kv_peak=max(usage),
        busy=counters["busy_s"] / (num_workers * run.duration_s),
        recomputed=counters["recomputed_tokens"] / max(counters["computed_tokens"], 1),
    )


def _token_s(run: RunRecord, quantile: float) -> float | None:
    """Mean seconds between two tokens of an answer, of the one at that quantile."""
    times = [each.token_times_s for each in run.sessions if len(each.token_times_s) > 1]
    if not times:
        return None
    means = [(each[-1] - each[0]) / (len(each) - 1) for each in times]
    return float(np.quantile(means, quantile))


def fewest(play: Callable[[int], Trial], limit: int) -> Sizing:
    """Doubles the number until the target is met, then bisects down to the last that did not.

    Assumes that more workers are never worse, which placement by load makes
    nearly true: the result is a number that meets the target while one fewer does not.
    """
    tried: dict[int, Trial] = {}

    def meets(number: int) -> bool:
        if number not in tried:
            tried[number] = play(number)
        return tried[number].meets

    below, number = 0, 1
    while not meets(number) and number < limit:
        below, number = number, min(2 * number, limit)
    if not tried[number].meets:
        return Sizing(limit, None, tried[number], _in_order(tried))
    while number - below > 1:
        middle = (below + number) // 2
        below, number = (below, middle) if meets(middle) else (middle, number)
    return Sizing(limit, tried[number], tried.get(number - 1), _in_order(tried))


def _in_order(tried: dict[int, Trial]) -> tuple[Trial, ...]:
    return tuple(tried[number] for number in sorted(tried))


# With fewer sessions one after the other, a run is mostly its beginning and its end, which are
# emptier than its middle.
_LONG_ENOUGH = 10
_TO_HUNDREDS = 100
# Where the rate leaves no time at all between two sessions.
_MOST = 1e12


@dataclass(frozen=True, slots=True)
class Length:
    """Durations of a load and of its sessions, in seconds."""

    # From the first opening to the last.
    arrivals_s: float
    # From opening to seal, on average.
    session_s: float
    num_sessions: int

    @property
    def is_enough(self) -> bool:
        """Whether the run shows how it goes on; else its number of workers is a lower bound."""
        return self.arrivals_s >= _LONG_ENOUGH * self.session_s

    @property
    def sessions_wanted(self) -> int:
        """So many sessions of this kind and rate are enough; at least those that there are."""
        if self.is_enough or not self.arrivals_s:
            return self.num_sessions
        wanted = self.num_sessions * _LONG_ENOUGH * self.session_s / self.arrivals_s
        return ceil(min(wanted, _MOST) / _TO_HUNDREDS + 1) * _TO_HUNDREDS


def length_of(asked: Sequence[Task]) -> Length:
    """Returns the durations of the load and of its sessions."""
    opened = [task.opened_s for task in asked]
    open_s = sum(task.sealed_s - task.opened_s for task in asked)
    return Length(max(opened) - min(opened), open_s / len(asked), len(asked))


@dataclass(frozen=True, slots=True)
class DecodeDemand:
    """Decode workers that the KV of running answers needs at least."""

    # Answers running at one moment on average: arrivals times the seconds of an answer.
    num_answers: float
    # Tokens of context and answer of one.
    tokens_each: float
    tokens_a_worker: int
    num_workers: int


def decode_by_memory(
    machine: Machine, asked: Sequence[Task], output_tokens: float, tokens_per_s: float
) -> DecodeDemand:
    """Returns the bound by memory alone: a profile has no times of decode steps.

    Each answer holds its context and all its tokens for as long as it takes at
    `tokens_per_s`, the slowest that is wanted.
    """
    seconds = length_of(asked).arrivals_s
    rate = (len(asked) - 1) / seconds if seconds > 0 else float(len(asked))
    num_answers = rate * output_tokens / tokens_per_s
    tokens_each = sum(task.num_tokens for task in asked) / len(asked) + output_tokens
    room = machine.num_blocks(machine.kv_gib) * machine.profile.block_size
    return DecodeDemand(
        num_answers, tokens_each, room, max(1, ceil(num_answers * tokens_each / room))
    )
