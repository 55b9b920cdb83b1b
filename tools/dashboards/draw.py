"""Draws a dashboard from the answers of a Prometheus, for documentation: Grafana's layout, no Grafana."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.dashboards.model import Dashboard, Panel

_COLUMNS = 2
_PANEL_INCHES = (6.0, 2.4)
_MAX_LEGEND = 12
_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Series:
    """One answer of a range query: a line."""

    labels: Mapping[str, str]
    # Seconds and values, in order.
    points: Sequence[tuple[float, float]]


Ask = Callable[[str], Sequence[Series]]


def draw(board: Dashboard, ask: Ask, path: Path) -> None:
    """Writes an image with a chart for each panel; the suffix of `path` is its format."""
    from matplotlib.figure import Figure  # here: of the extra [plot]

    panels = board.panels
    num_rows = -(-len(panels) // _COLUMNS)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(_COLUMNS * width, num_rows * height + 0.5), layout="constrained")
    figure.suptitle(board.title)
    cells = figure.subplots(num_rows, _COLUMNS, squeeze=False).flat
    for panel, axes in zip(panels, cells, strict=False):
        _draw_panel(panel, ask, axes)
    for axes in list(figure.axes)[len(panels) :]:
        axes.set_axis_off()
    figure.savefig(path, metadata={"Date": None})


def _draw_panel(panel: Panel, ask: Ask, axes: Any) -> None:
    for query in panel.queries:
        for series in ask(query.expr):
            if not series.points:
                continue
            begin_s = series.points[0][0]
            times_s = [at_s - begin_s for at_s, _ in series.points]
            values = [value for _, value in series.points]
            axes.plot(times_s, values, label=legend(query.legend, series.labels), linewidth=1)
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.set_ylabel("" if panel.unit in ("none", "short") else panel.unit, fontsize=7)
    axes.set_xlabel("seconds", fontsize=7)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    _, named = axes.get_legend_handles_labels()  # a line at 0 has no labels to name
    if 0 < len(named) <= _MAX_LEGEND:
        axes.legend(fontsize=5, loc="upper left", ncols=1 + (len(named) > _MAX_LEGEND // 2))


def legend(form: str, labels: Mapping[str, str]) -> str:
    """Grafana's legend: `{{label}}` is a label's value."""
    return _LABEL.sub(lambda match: labels.get(match[1], ""), form).strip()
