"""The report's tables, and the report in Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from stream2llm.workload.records import TOKEN_KINDS, RunRecord
from stream2llm.workload.report.compare import Comparison, compare
from stream2llm.workload.report.lateness import generator_lateness_s, lateness_warning
from stream2llm.workload.report.series import run_labels
from stream2llm.workload.report.statistics import PERCENTILES, Distribution, percent_word
from stream2llm.workload.report.summary import Summary, summarize
from stream2llm.workload.table import Table, markdown

# What people call them; the order of the rows.
LATENCY_TITLES: Final = {
    "ttft": "TTFT from seal",
    "ttft_from_open": "TTFT from open",
    "ttft_from_due": "TTFT from due seal",
    "itl": "inter-token latency",
    "tpot": "time per output token",
    "e2el": "completion from seal",
    "e2el_from_open": "completion from open",
    "lateness": "lateness of events",
}


def report_markdown(runs: Sequence[RunRecord], ours: str | None = None) -> str:
    """All tables of these runs; with `ours` that system is compared with the others."""
    summaries = [summarize(run) for run in runs]
    parts = ["# Benchmark report", *(f"**{each}**" for each in warnings_of(summaries))]
    parts += ["## Runs", markdown(runs_table(summaries))]
    parts += ["## Latencies", markdown(latency_table(summaries))]
    parts += ["## Tokens", markdown(tokens_table(summaries))]
    if any(each.errors for each in summaries):
        parts += ["## Errors", markdown(errors_table(summaries))]
    if ours is not None and (found := compare(runs, ours)):
        parts += ["## Compared", comparison_table(found)]
    parts += ["## Settings and counters", markdown(settings_table(runs))]
    return "\n\n".join(parts) + "\n"


def summary_table(summaries: Sequence[Summary]) -> str:
    """Runs and their latencies as two Markdown tables."""
    return f"{markdown(runs_table(summaries))}\n\n{markdown(latency_table(summaries))}"


def comparison_table(comparisons: Iterable[Comparison]) -> str:
    """Ratios with their intervals as a Markdown table."""
    return markdown(comparisons_table(comparisons))


def warnings_of(summaries: Iterable[Summary]) -> list[str]:
    """What a reader must know before the figures."""
    return [warning for each in summaries if (warning := lateness_warning(each))]


# -- tables --------------------------------------------------------------------------


def runs_table(summaries: Iterable[Summary]) -> Table:
    """What was asked of each system, and what it did."""
    titles = [
        *("system", "trace", "sessions/s", "completed", "failed", "duration s"),
        *("in time", "answers/s", "output tok/s", "most open", "generator late ms"),
    ]
    return Table(titles, [_run_row(each) for each in summaries], 2)


def _run_row(summary: Summary) -> list[str]:
    return [
        summary.system,
        summary.trace,
        _number(summary.request_rate, ".3g"),
        f"{summary.completed:,}",
        f"{summary.failed:,}",
        f"{summary.duration_s:,.1f}",
        _number(summary.goodput, ".1%"),
        f"{summary.per_second(summary.completed):.3g}",
        f"{summary.per_second(summary.output_tokens):,.1f}",
        f"{summary.peak_sessions:,}",
        f"{generator_lateness_s(summary) * 1e3:,.1f}",
    ]


def tokens_table(summaries: Iterable[Summary]) -> Table:
    """What became of the tokens, and how often KV was taken away."""
    titles = ["system", "sessions/s", "prompts", *TOKEN_KINDS, "answers", "preemptions"]
    return Table(titles, [_tokens_row(each) for each in summaries])


def _tokens_row(summary: Summary) -> list[str]:
    counts = [summary.input_tokens, *summary.tokens_by_kind.values(), summary.output_tokens]
    return [
        summary.system,
        _number(summary.request_rate, ".3g"),
        *(_number(count, ",") for count in counts),
        _number(summary.preemptions, ",.0f"),
    ]


def latency_table(summaries: Iterable[Summary]) -> Table:
    """A row for each system and latency, in milliseconds."""
    percents = [f"P{percent_word(percent)}" for percent in PERCENTILES]
    titles = ["latency (ms)", "system", "sessions/s", "n", "mean", "std", *percents, "max"]
    rows = [
        [title, each.system, _number(each.request_rate, ".3g"), *_values(each.latencies_s[name])]
        for name, title in LATENCY_TITLES.items()
        for each in summaries
    ]
    return Table(titles, rows, 2)


def _values(found: Distribution | None) -> list[str]:
    if found is None:
        return ["0", *(["–"] * (len(PERCENTILES) + 3))]
    values = [found.mean, found.std, *found.percentiles.values(), found.maximum]
    return [f"{found.count:,}", *(f"{value * 1e3:,.1f}" for value in values)]


def errors_table(summaries: Iterable[Summary]) -> Table:
    """Sessions without a whole answer, by why."""
    rows = [
        [each.system, _number(each.request_rate, ".3g"), error, f"{count:,}"]
        for each in summaries
        for error, count in sorted(each.errors.items())
    ]
    return Table(["system", "sessions/s", "error", "sessions"], rows, 3)


def settings_table(runs: Sequence[RunRecord]) -> Table:
    """Settings in which runs differ, and counters: a column for each run."""
    given = [{**run.settings, **run.counters} for run in runs]
    names = dict.fromkeys(name for each in given for name in each)
    rows = [[name, *(_setting(each.get(name)) for each in given)] for name in names]
    return Table(["", *run_labels(runs)], rows)


def comparisons_table(comparisons: Iterable[Comparison]) -> Table:
    """Ours divided by theirs; better only where the 95 % interval excludes 1."""
    titles = [
        *("ours", "theirs", "latency", "percentile", "sessions/s"),
        *("ratio", "95 % interval", "verdict", "failed"),
    ]
    return Table(titles, [_comparison_row(each) for each in comparisons], 4)


def _comparison_row(each: Comparison) -> list[str]:
    interval = each.interval
    return [
        each.ours,
        each.theirs,
        LATENCY_TITLES.get(each.latency, each.latency),
        f"P{percent_word(each.percentile)}",
        _number(each.request_rate, ".3g"),
        f"{interval.ratio:.3f}",
        f"{interval.low:.3f} to {interval.high:.3f}",
        str(interval.verdict),
        f"{each.our_failed} / {each.their_failed}",
    ]


def _setting(value: str | float | None) -> str:
    return value if isinstance(value, str) else _number(value, ",.6g")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
