"""Runs as matplotlib figures. Imported where something is drawn, not before.

Figures are made without pyplot, which keeps every figure and picks a display.
A system has one colour in all figures; its further runs differ in the dashes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from stream2llm.workload.records import RunRecord
from stream2llm.workload.report.series import Line, ccdf, run_labels, thinned, ttft_by_load
from stream2llm.workload.report.summary import latencies

_STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
_COLOURS = tuple(f"C{number}" for number in range(10))
_DASHES = ("-", "--", ":", "-.")


class Plot(NamedTuple):
    """A figure, and what it is called in files and on pages."""

    name: str
    title: str
    figure: Any


def plots_of(runs: Sequence[RunRecord]) -> list[Plot]:
    """All that these runs have points for."""
    with plot_style():
        return [*_ccdf_plot(runs), *_load_plot(runs), *_timelines(runs)]


def to_svg(plot: Plot) -> bytes:
    """The figure as SVG; equal figures give equal files."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": plot.name}):
        plot.figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


@contextmanager
def plot_style() -> Iterator[None]:
    """Matplotlib's settings for all figures, while they are made."""
    with matplotlib.rc_context(_STYLE):
        yield


def _looks(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Colour, dashes and label of each run's line."""
    systems = list(dict.fromkeys(run.system for run in runs))
    labels, seen = run_labels(runs), dict.fromkeys(systems, 0)
    looks = []
    for run, label in zip(runs, labels, strict=True):
        colour = _COLOURS[systems.index(run.system) % len(_COLOURS)]
        dashes = _DASHES[seen[run.system] % len(_DASHES)]
        looks.append({"color": colour, "linestyle": dashes, "label": label})
        seen[run.system] += 1
    return looks


# -- TTFT CCDF -------------------------------------------------------------------------


def _ccdf_plot(runs: Sequence[RunRecord]) -> Iterator[Plot]:
    lines = [
        (ccdf(ttfts_s), look)
        for run, look in zip(runs, _looks(runs), strict=True)
        if (ttfts_s := latencies(run, "ttft"))
    ]
    if lines:
        yield Plot(
            "ttft_ccdf", "TTFT from seal: the share of sessions that wait longer", _ccdf(lines)
        )


def _ccdf(lines: Sequence[tuple[Line, dict[str, Any]]]) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for line, look in lines:
        # From one value to the next the share is that of the next.
        axes.plot(line.x, line.y, drawstyle="steps-pre", **look)
    axes.set(xscale="log", yscale="log", xlabel="TTFT from seal (s)", ylabel="share of sessions")
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis, " %", 100)
    axes.legend()
    return figure


def _plain_ticks(axis: Any, unit: str = "", factor: float = 1.0) -> None:
    """Ticks of a logarithmic axis as 0.1, 0.2, 0.5, which people read faster than powers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * factor:g}{unit}"))
    axis.set_minor_formatter(NullFormatter())


# -- TTFT against load -----------------------------------------------------------------


def _load_plot(runs: Sequence[RunRecord]) -> Iterator[Plot]:
    systems = list(dict.fromkeys(run.system for run in runs))
    if any(ttft_by_load(runs, 50.0)):
        yield Plot("ttft_load", "TTFT from seal against load", _load(runs, systems))


def _load(runs: Sequence[RunRecord], systems: Sequence[str]) -> Figure:
    figure = Figure(figsize=(8, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, percent in zip(panels, (50.0, 99.0), strict=True):
        for number, system in enumerate(systems):
            colour = _COLOURS[number % len(_COLOURS)]
            own = [run for run in runs if run.system == system]
            _draw_loads(axes, own, percent, {"color": colour, "label": system})
        axes.set(xlabel="sessions a second", yscale="log", title=f"P{percent:g}")
    panels[0].set_ylabel("TTFT from seal (s)")
    _plain_ticks(panels[0].yaxis)
    panels[0].legend()
    figure.supxlabel("hollow: some sessions of the run have no answer", fontsize="small", alpha=0.6)
    return figure


def _draw_loads(axes: Any, runs: Sequence[RunRecord], percent: float, look: dict[str, Any]) -> None:
    points = ttft_by_load(runs, percent)
    axes.plot([p.request_rate for p in points], [p.ttft_s for p in points], **look)
    for point in points:
        fill = "white" if point.failed else look["color"]
        axes.plot(point.request_rate, point.ttft_s, "o", color=look["color"], markerfacecolor=fill)


# -- timelines -------------------------------------------------------------------------


def _timelines(runs: Sequence[RunRecord]) -> Iterator[Plot]:
    for number, (run, label) in enumerate(zip(runs, run_labels(runs), strict=True), 1):
        if run.samples:
            title = f"KV use and queue over time: {label}"
            yield Plot(f"timeline_{number}", title, _timeline(run))


def _timeline(run: RunRecord) -> Figure:
    figure = Figure(figsize=(8, 4), layout="constrained")
    usage, queue = figure.subplots(2, 1, sharex=True)
    samples = thinned(run.samples)
    at_s = [sample.at_s for sample in samples]
    usage.fill_between(at_s, [sample.kv_usage for sample in samples], alpha=0.3)
    usage.plot(at_s, [sample.kv_usage for sample in samples])
    usage.set(ylim=(0, 1.02), ylabel="KV blocks held")
    usage.yaxis.set_major_formatter(PercentFormatter(1.0))
    queue.plot(at_s, [sample.num_sessions for sample in samples], label="open or unanswered")
    queue.plot(at_s, [sample.num_with_work for sample in samples], label="with tokens to compute")
    queue.set(xlabel="seconds", ylabel="sessions", ylim=(0, None))
    queue.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2)
    return figure
