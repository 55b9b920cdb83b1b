"""Computes what faults have cost the sessions of a run, from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from experiments.faults.plan import Strike
from stream2llm.workload.records import SessionRecord
from stream2llm.workload.report.statistics import distribution
from stream2llm.workload.table import Table, markdown


@dataclass(frozen=True, slots=True)
class Run:
    """The record of one run: its sessions, their answers, the faults, and what was left."""

    records: tuple[SessionRecord, ...]
    # Token ids of each whole answer, by session.
    answers: Mapping[str, list[int]]
    strikes: tuple[Strike, ...]
    # How often workers and controllers were created again.
    num_replaced: int
    # KV blocks that workers held after the last session.
    num_blocks_held: int


@dataclass(frozen=True, slots=True)
class Delay:
    """Seconds that sessions of one kind waited."""

    what: str
    count: int
    p50_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Check:
    """Answers compared with those of a cluster without faults."""

    num_compared: int
    # Sessions whose answer was another one.
    differing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    num_sessions: int
    num_answered: int
    failed: Mapping[str, int]
    num_restarted: int
    num_restarts: int
    strikes: tuple[Strike, ...]
    num_replaced: int
    num_blocks_held: int
    delays: tuple[Delay, ...]
    check: Check


def to_compare(run: Run, most: int) -> list[str]:
    """Which answers to compare: restarted sessions first, then others, each in their order."""
    whole = [each for each in run.records if each.session_id in run.answers]
    ordered = sorted(whole, key=lambda each: not each.restarts)
    return [each.session_id for each in ordered[:most]]


def outcome(run: Run, check: Check) -> Outcome:
    """Returns the figures of one run; `check` has its compared answers."""
    records, times = run.records, [strike.at_s for strike in run.strikes]
    struck = {each.session_id for each in records if is_struck(each, times)}
    return Outcome(
        num_sessions=len(records),
        num_answered=sum(not each.error for each in records),
        failed=Counter(each.error for each in records if each.error),
        num_restarted=sum(each.restarts > 0 for each in records),
        num_restarts=sum(each.restarts for each in records),
        strikes=run.strikes,
        num_replaced=run.num_replaced,
        num_blocks_held=run.num_blocks_held,
        delays=tuple(_delays(records, struck)),
        check=check,
    )


def is_struck(record: SessionRecord, fault_times_s: Iterable[float]) -> bool:
    """Returns whether a fault came between the seal and the first token."""
    if record.sealed_s is None or not record.token_times_s:
        return False
    return any(record.sealed_s <= at_s <= record.token_times_s[0] for at_s in fault_times_s)


def _delays(records: Sequence[SessionRecord], struck: set[str]) -> Iterator[Delay]:
    parted = [(each, each.session_id in struck, each.restarts > 0) for each in records]
    yield from _delay("TTFT, no fault before it", [r.ttft_s for r, hit, _ in parted if not hit])
    yield from _delay("TTFT, a fault before it", [r.ttft_s for r, hit, _ in parted if hit])
    waits = [(each.longest_wait_s, is_restarted) for each, _, is_restarted in parted]
    yield from _delay("longest wait, not restarted", [w for w, again in waits if not again])
    yield from _delay("longest wait, restarted", [w for w, again in waits if again])


def _delay(what: str, seconds: Iterable[float | None]) -> Iterator[Delay]:
    """Nothing where there is no answer of this kind."""
    if (found := distribution([each for each in seconds if each is not None])) is not None:
        yield Delay(what, found.count, found.median, found.percentiles[99.0], found.maximum)


def tables(run: Outcome) -> str:
    """The run in Markdown."""
    return "\n\n".join((_counts(run), _faults(run), _times(run)))


def _counts(run: Outcome) -> str:
    failed = ", ".join(f"{count} {error}" for error, count in sorted(run.failed.items())) or "0"
    titles = (
        "sessions", "answered", "failed", "restarted", "restarts", "compared", "other answers",
        "blocks held",
    )  # fmt: skip
    cells = (
        run.num_sessions, run.num_answered, failed, run.num_restarted, run.num_restarts,
        run.check.num_compared, len(run.check.differing), run.num_blocks_held,
    )  # fmt: skip
    return markdown(Table(titles, [[str(cell) for cell in cells]], 0))


def _faults(run: Outcome) -> str:
    counts = Counter(
        (strike.kind, strike.replica.partition("-")[0], strike.stopped_s is None)
        for strike in run.strikes
    )
    rows = [
        [role, kind, "killed" if is_killed else "stopped", str(count)]
        for (kind, role, is_killed), count in sorted(
            counts.items(), key=lambda item: item[0][1::-1]
        )
    ]
    rows.append(["all", "", f"replaced {run.num_replaced} times", str(len(run.strikes))])
    return markdown(Table(("part", "process", "fault", "times"), rows, 3))


def _times(run: Outcome) -> str:
    rows = [
        [each.what, str(each.count), f"{each.p50_s:.2f}", f"{each.p99_s:.2f}", f"{each.max_s:.2f}"]
        for each in run.delays
    ]
    return markdown(Table(("seconds from the seal on", "sessions", "P50", "P99", "maximum"), rows))


def missed(run: Outcome) -> list[str]:
    """Returns a line for each expectation that the run does not meet."""
    found = [f"{count} sessions failed: {error}" for error, count in sorted(run.failed.items())]
    if run.check.differing:
        found.append(f"other answers than without faults: {', '.join(run.check.differing)}")
    if run.num_blocks_held:
        found.append(f"{run.num_blocks_held} KV blocks are held after the last session")
    if not run.num_restarted:
        found.append("no session was restarted, so the run shows nothing")
    return found
