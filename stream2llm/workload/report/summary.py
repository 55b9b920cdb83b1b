"""One run in numbers. Pure.

Latencies are those of whole answers; sessions without one are counted by their
error and have no latency, so a system that refuses many must not be judged by
its percentiles alone. What was computed counts for all sessions: it was spent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from stream2llm.workload.records import TOKEN_KINDS, RunRecord, SessionRecord
from stream2llm.workload.report.statistics import Distribution, distribution

# Name in RunRecord.counters.
PREEMPTIONS: Final = "preemptions"
# Name in RunRecord.settings of a run whose sessions do not show their rate, such as
# several repetitions one after the other.
REQUEST_RATE: Final = "request_rate"


@dataclass(frozen=True, slots=True)
class Summary:
    """What reports tell of one run."""

    system: str
    trace: str
    duration_s: float
    # Sessions with a whole answer, and the others by why they have none.
    completed: int
    errors: Mapping[str, int]
    # Sessions a second that the trace asked for; None for fewer than two.
    request_rate: float | None
    # Tokens of completed sessions.
    input_tokens: int
    output_tokens: int
    # Prompt tokens of all sessions by each of TOKEN_KINDS; None where it was not counted.
    tokens_by_kind: Mapping[str, int | None]
    # Sessions whose KV was taken for others; None when the runner did not count.
    preemptions: float | None
    # Sessions with a deadline of the first token, and those that met it.
    with_deadline: int
    in_time: int
    # Most answer tokens in any second, and sessions open at one moment.
    peak_output_tokens_per_s: float
    peak_sessions: int
    # In seconds, by the names of LATENCIES; None where no session has one.
    latencies_s: Mapping[str, Distribution | None]
    counters: Mapping[str, float]
    settings: Mapping[str, str | float]

    @property
    def failed(self) -> int:
        """Sessions without a whole answer."""
        return sum(self.errors.values())

    @property
    def goodput(self) -> float | None:
        """Share of the sessions with a deadline that met it; None: there was none."""
        return self.in_time / self.with_deadline if self.with_deadline else None

    def per_second(self, amount: float) -> float:
        """An amount of the whole run as a rate; 0 for a run that took no time."""
        return amount / self.duration_s if self.duration_s > 0 else 0.0


def summarize(run: RunRecord) -> Summary:
    """All figures of a run."""
    done = [session for session in run.sessions if not session.error]
    return Summary(
        system=run.system,
        trace=run.trace,
        duration_s=run.duration_s,
        completed=len(done),
        errors=dict(Counter(each.error for each in run.sessions if each.error)),
        request_rate=request_rate(run),
        input_tokens=sum(session.num_prompt_tokens for session in done),
        output_tokens=sum(len(session.token_times_s) for session in done),
        tokens_by_kind={kind: _tokens(run, kind) for kind in TOKEN_KINDS},
        preemptions=_preemptions(run.counters),
        with_deadline=sum(each.is_in_time is not None for each in run.sessions),
        in_time=sum(each.is_in_time is True for each in run.sessions),
        peak_output_tokens_per_s=_peak_rate(run.sessions),
        peak_sessions=_peak_sessions(run.sessions),
        latencies_s={name: distribution(latencies(run, name)) for name in LATENCIES},
        counters=run.counters,
        settings=run.settings,
    )


def latencies(run: RunRecord, name: str) -> list[float]:
    """Every value of one latency in seconds, session by session."""
    of_session = LATENCIES[name]
    return [value for session in run.sessions for value in of_session(session)]


def request_rate(run: RunRecord) -> float | None:
    """Sessions a second that the trace asked for; None when it asked for no rate."""
    if REQUEST_RATE in run.settings:
        return float(run.settings[REQUEST_RATE])
    due = [session.due_s for session in run.sessions]
    if len(due) < 2 or max(due) <= min(due):
        return None
    return (len(due) - 1) / (max(due) - min(due))


# -- latencies of one session ------------------------------------------------------


def _optional(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def _from_due(session: SessionRecord) -> tuple[float, ...]:
    """To the first token from when the trace had the last context.

    The wait of sessions that a system does not admit is in here, and
    not in the time from the seal.
    """
    return () if session.ttft_s is None else (session.token_times_s[0] - session.seal_due_s,)


def _inter_token(session: SessionRecord) -> Iterator[float]:
    """Gaps between messages: tokens of one message have none between them."""
    if session.error:
        return
    for before, after in pairwise(session.token_times_s):
        if after > before:
            yield after - before


def _per_output_token(session: SessionRecord) -> tuple[float, ...]:
    """Mean time of the tokens behind the first."""
    times = session.token_times_s
    if session.error or len(times) < 2:
        return ()
    return ((times[-1] - times[0]) / (len(times) - 1),)


def _completion(session: SessionRecord) -> tuple[float, ...]:
    if session.error or session.sealed_s is None:
        return ()
    return (session.ended_s - session.sealed_s,)


def _completion_from_open(session: SessionRecord) -> tuple[float, ...]:
    return () if session.error else (session.ended_s - session.opened_s,)


# By the names that `vllm bench serve` has, and names of ours in its manner.
LATENCIES: Final[Mapping[str, Callable[[SessionRecord], Iterable[float]]]] = {
    "ttft": lambda session: _optional(session.ttft_s),
    "ttft_from_open": lambda session: _optional(session.ttft_from_open_s),
    "ttft_from_due": _from_due,
    "tpot": _per_output_token,
    "itl": _inter_token,
    "e2el": _completion,
    "e2el_from_open": _completion_from_open,
    "lateness": lambda session: (session.lateness_s,),
    "generator_lateness": lambda session: (session.generator_lateness_s,),
}


# -- of the whole run --------------------------------------------------------------


def _preemptions(counters: Mapping[str, float]) -> float | None:
    """The total if there is one, else the sum of the kinds, as "preemptions_swap"."""
    if PREEMPTIONS in counters:
        return counters[PREEMPTIONS]
    kinds = [value for name, value in counters.items() if name.startswith(f"{PREEMPTIONS}_")]
    return sum(kinds) if kinds else None


def _tokens(run: RunRecord, kind: str) -> int | None:
    """The sum over the sessions, or where they have none, over counters such as
    "reused_across_sessions_tokens"."""
    of_sessions: list[int | None] = [getattr(each, f"{kind}_tokens") for each in run.sessions]
    known = [count for count in of_sessions if count is not None]
    if known:
        return sum(known)
    counted = [
        value
        for name, value in run.counters.items()
        if name.startswith(f"{kind}_") and name.endswith("_tokens")
    ]
    return round(sum(counted)) if counted else None


def _peak_rate(sessions: Iterable[SessionRecord]) -> float:
    """Most tokens that arrived in one of the run's whole seconds."""
    seconds = Counter(int(at_s) for session in sessions for at_s in session.token_times_s)
    return float(max(seconds.values(), default=0))


def _peak_sessions(sessions: Iterable[SessionRecord]) -> int:
    """Most sessions open at one moment; one that ends makes room for one that opens then."""
    changes = [change for each in sessions for change in ((each.opened_s, 1), (each.ended_s, -1))]
    now = peak = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak
