"""Which system is better where, from the records of a run. Pure.

Repetitions of a cell are pooled: a percentile is that of all their sessions. A
ratio says how many times as long the baseline takes; better means that the 95 %
bootstrap interval of it is above 1 altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from experiments.baselines.cells import AWAITED, OURS, STOCK, is_mixed, policy_of
from stream2llm.workload.records import RunRecord, SessionRecord
from stream2llm.workload.report import RatioInterval, Verdict, ratio_interval
from stream2llm.workload.report.lateness import LOOP_LAG_MAX, LOOP_LAG_P99
from stream2llm.workload.report.statistics import distribution
from stream2llm.workload.table import Table, markdown

PERCENTILES = (50.0, 95.0, 99.0)
# (d) of the comparison: our scheduler with stock vLLM's order.
DEFAULT = f"{OURS} default"
WANTED_MEDIAN_RATIO = 10.0
# Where every answer of the other side has both cores, too.
WANTED_MIXED_MEDIAN_RATIO = 8.0
ACCEPTED_COMPLETION = 1.01


@dataclass(frozen=True, slots=True)
class Against:
    """One of our policies against one baseline, in one cell."""

    trace: str
    ours: str
    theirs: str
    # Their percentile for each one of ours; None where a side has no answer at all.
    ratios: Mapping[float, RatioInterval | None]
    # Our completion time of the trace for each one of theirs; medians of the repetitions.
    completion: float
    our_failed: int
    their_failed: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing that was wanted, and whether it is so."""

    what: str
    holds: bool
    figure: str


def pooled(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The repetitions of each cell and system as one record, one after the other in time.

    Repetitions begin at the same times for all systems of a cell, so that its
    records show the same load.
    """
    begins: dict[tuple[str, float], float] = {}
    for trace in dict.fromkeys(run.trace for run in runs):
        begin_s = 0.0
        for number in sorted({_repetition(run) for run in runs if run.trace == trace}):
            begins[trace, number] = begin_s
            begin_s += max(
                run.duration_s for run in runs if run.trace == trace and _repetition(run) == number
            )
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        groups.setdefault((run.trace, run.system), []).append(run)
    return [_joined(group, begins) for group in groups.values()]


def _repetition(run: RunRecord) -> float:
    return float(run.settings.get("repetition", 1))


def _joined(group: Sequence[RunRecord], begins: Mapping[tuple[str, float], float]) -> RunRecord:
    sessions: list[SessionRecord] = []
    end_s = 0.0
    for run in sorted(group, key=_repetition):
        begin_s = begins[run.trace, _repetition(run)]
        sessions += [shifted(each, begin_s, f"r{_repetition(run):g}/") for each in run.sessions]
        end_s = begin_s + run.duration_s
    settings = {key: value for key, value in group[0].settings.items() if key != "repetition"}
    return replace(
        group[0],
        duration_s=end_s,
        sessions=tuple(sessions),
        counters=_joined_counters([run.counters for run in group]),
        settings={**settings, "repetitions": len(group)},
    )


def _joined_counters(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums; of shares the mean, and of how late the driver's loop was the worst."""
    values: dict[str, list[float]] = {}
    for counters in each:
        for name, value in counters.items():
            values.setdefault(name, []).append(value)
    return {name: _joining(name)(found) for name, found in values.items()}


def _joining(name: str) -> Callable[[Sequence[float]], float]:
    if name in (LOOP_LAG_P99, LOOP_LAG_MAX):
        return max
    return mean if name.endswith("_share") else sum


def shifted(session: SessionRecord, by_s: float, prefix: str) -> SessionRecord:
    """The same session later, under a name of its own."""
    return replace(
        session,
        session_id=prefix + session.session_id,
        due_s=session.due_s + by_s,
        opened_s=session.opened_s + by_s,
        seal_due_s=session.seal_due_s + by_s,
        sealed_s=None if session.sealed_s is None else session.sealed_s + by_s,
        token_times_s=tuple(at_s + by_s for at_s in session.token_times_s),
        ended_s=session.ended_s + by_s,
    )


def ttfts_s(runs: Iterable[RunRecord]) -> list[float]:
    """TTFT in seconds of all sessions that have one."""
    found = (session.ttft_s for run in runs for session in run.sessions)
    return [each for each in found if each is not None]


def against_all(runs: Sequence[RunRecord]) -> list[Against]:
    """Every policy of ours against every baseline of its cell; `default` is a baseline to the others."""
    found = []
    for trace in dict.fromkeys(run.trace for run in runs):
        by_system: dict[str, list[RunRecord]] = {}
        for run in runs:
            if run.trace == trace:
                by_system.setdefault(run.system, []).append(run)
        for ours in (name for name in by_system if policy_of(name) is not None):
            others = STOCK if is_mixed(ours) else (*STOCK, DEFAULT)
            baselines = [name for name in others if name in by_system and name != ours]
            found += [_against(trace, ours, theirs, by_system) for theirs in baselines]
    return found


def _against(
    trace: str, ours: str, theirs: str, by_system: Mapping[str, Sequence[RunRecord]]
) -> Against:
    our_runs, their_runs = by_system[ours], by_system[theirs]
    our_times, their_times = ttfts_s(our_runs), ttfts_s(their_runs)
    return Against(
        trace=trace,
        ours=ours,
        theirs=theirs,
        ratios={
            percent: ratio_interval(their_times, our_times, percent, higher_is_better=True)
            if our_times and their_times
            else None
            for percent in PERCENTILES
        },
        completion=_completion_s(our_runs) / _completion_s(their_runs),
        our_failed=num_failed(our_runs),
        their_failed=num_failed(their_runs),
    )


def _completion_s(runs: Sequence[RunRecord]) -> float:
    return median(run.duration_s for run in runs)


def num_failed(runs: Iterable[RunRecord]) -> int:
    """Sessions without a whole answer."""
    return sum(bool(session.error) for run in runs for session in run.sessions)


def wanted(found: Sequence[Against]) -> list[Wanted]:
    """What was asked for at heavy load, for each policy of ours but `default`."""
    rows = []
    for each in found:
        if not each.trace.endswith(" heavy") or policy_of(each.ours) == "default":
            continue
        if each.theirs in AWAITED:
            rows += list(_against_awaited(each))
        if is_mixed(each.ours):
            rows.append(_nowhere_worse(each))
        elif each.theirs not in AWAITED:
            rows.append(_better_everywhere(each))
    return rows


def _against_awaited(each: Against) -> Iterable[Wanted]:
    median_ratio = each.ratios[50.0]
    least = WANTED_MIXED_MEDIAN_RATIO if is_mixed(each.ours) else WANTED_MEDIAN_RATIO
    if " crawler " in each.trace and median_ratio is not None:
        yield Wanted(
            f"{each.trace}: median TTFT of {each.ours} {least:g} x that of {each.theirs} or better",
            median_ratio.ratio >= least,
            show_ratio(median_ratio),
        )
    yield Wanted(
        f"{each.trace}: {each.ours} completes the trace within 1 % of {each.theirs}",
        each.completion <= ACCEPTED_COMPLETION,
        f"{each.completion:.3f}",
    )


def _better_everywhere(each: Against) -> Wanted:
    return _everywhere(each, "better than", {Verdict.BETTER})


def _nowhere_worse(each: Against) -> Wanted:
    return _everywhere(each, "better than or equal to", {Verdict.BETTER, Verdict.EQUAL})


def _everywhere(each: Against, words: str, accepted: Collection[Verdict]) -> Wanted:
    holds = [ratio is not None and ratio.verdict in accepted for ratio in each.ratios.values()]
    return Wanted(
        f"{each.trace}: {each.ours} {words} {each.theirs} at P50, P95 and P99",
        all(holds),
        "; ".join(show_ratio(ratio) for ratio in each.ratios.values()),
    )


# -- tables ------------------------------------------------------------------------


def verdict_tables(runs: Sequence[RunRecord]) -> str:
    """All of it as Markdown."""
    found = against_all(runs)
    parts = ["# Baselines", markdown(_wanted_table(wanted(found)))]
    for trace in dict.fromkeys(run.trace for run in runs):
        cell = [run for run in runs if run.trace == trace]
        parts += [f"## {trace}", markdown(_absolute_table(cell))]
        parts.append(markdown(_against_table([each for each in found if each.trace == trace])))
    return "\n\n".join(parts) + "\n"


def _wanted_table(rows: Sequence[Wanted]) -> Table:
    marks = {True: "yes", False: "**NO**"}
    return Table(["wanted", "figure", ""], [[r.what, r.figure, marks[r.holds]] for r in rows], 3)


def _absolute_table(cell: Sequence[RunRecord]) -> Table:
    titles = [
        "system",
        "answers",
        "failed",
        "TTFT P50",
        "P95",
        "P99",
        "mean",
        "completed in",
        "CPU",
    ]
    systems: dict[str, list[RunRecord]] = {}
    for run in cell:
        systems.setdefault(run.system, []).append(run)
    return Table(titles, [_absolute_cells(name, runs) for name, runs in systems.items()])


def _absolute_cells(system: str, runs: Sequence[RunRecord]) -> list[str]:
    found = distribution(ttfts_s(runs))
    times = [found.percentiles[each] for each in PERCENTILES] + [found.mean] if found else []
    shown = [f"{1000 * each:,.1f} ms" for each in times] or ["-"] * 4
    cpu_s = median(run.counters.get("cpu_s", float("nan")) for run in runs)
    counts = [str(found.count if found else 0), str(num_failed(runs))]
    return [system, *counts, *shown, f"{_completion_s(runs):.1f} s", f"{cpu_s:.1f} s"]


def _against_table(found: Sequence[Against]) -> Table:
    titles = ["ours", "against", "P50", "P95", "P99", "completion", "failed (ours, theirs)"]
    return Table(titles, [_against_cells(each) for each in found], 5)


def _against_cells(each: Against) -> list[str]:
    ratios = [show_ratio(each.ratios[percent]) for percent in PERCENTILES]
    failed = f"{each.our_failed}, {each.their_failed}"
    return [each.ours, each.theirs, *ratios, f"{each.completion:.3f}", failed]


def show_ratio(ratio: RatioInterval | None) -> str:
    """For instance "4.21 [3.90, 4.55] better"."""
    if ratio is None:
        return "-"
    return f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] {ratio.verdict.value}"
