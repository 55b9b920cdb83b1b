"""`python -m tools.dashboards.pictures`: every dashboard as an image, of what a Prometheus has recorded."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from stream2llm.serving.system.clock import SystemClock
from stream2llm.workload.report.plots import Plot, plot_style, to_svg
from tools.dashboards.files import DASHBOARDS
from tools.dashboards.model import Dashboard, Panel
from tools.dashboards.prometheus import Prometheus, Series, TimeRange, filled_in

_COLUMNS = 2
_PANEL_INCHES = (6.0, 2.4)
_MAX_LEGEND = 12
# Letters as outlines are most of such a file; points off a line by half a pixel are not seen.
_SMALL: Any = {"svg.fonttype": "none", "path.simplify_threshold": 0.5}
_LONG_NUMBER = re.compile(rb"(\b\d+\.\d\d)\d+")
_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")

Ask = Callable[[str], Sequence[Series]]
# Points of a line. Matplotlib leaves out those that change nothing where there are 128 or more.
_NUM_POINTS = 200


def draw(board: Dashboard, ask: Ask, over: TimeRange) -> bytes:
    """Returns an SVG image with a chart for each panel, all over the same time."""
    panels = board.panels
    num_rows = -(-len(panels) // _COLUMNS)
    width, height = _PANEL_INCHES
    with plot_style(), rc_context(_SMALL):
        figure = Figure(figsize=(_COLUMNS * width, num_rows * height + 0.5), layout="constrained")
        figure.suptitle(board.title)
        cells = figure.subplots(num_rows, _COLUMNS, squeeze=False).flat
        for panel, axes in zip(panels, cells, strict=False):
            _draw_panel(panel, ask, over, axes)
        for axes in list(figure.axes)[len(panels) :]:
            axes.set_axis_off()
        return shortened(to_svg(Plot(board.uid, board.title, figure)))


def shortened(svg: bytes) -> bytes:
    """The image with coordinates cut to hundredths of a point, which makes it smaller and is not seen."""
    return _LONG_NUMBER.sub(rb"\1", svg)


def _draw_panel(panel: Panel, ask: Ask, over: TimeRange, axes: Any) -> None:
    for query in panel.queries:
        for series in ask(query.expr):
            times_s = [at_s - over.begin_s for at_s, _ in series.points]
            values = [value for _, value in series.points]
            axes.plot(times_s, values, label=legend(query.legend, series.labels), linewidth=1)
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.set_ylabel("" if panel.unit in ("none", "short") else panel.unit, fontsize=7)
    axes.set_xlabel("seconds", fontsize=7)
    axes.set_xlim(0, over.end_s - over.begin_s)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    _, named = axes.get_legend_handles_labels()  # a line at 0 has no labels to name
    if 0 < len(named) <= _MAX_LEGEND:
        axes.legend(fontsize=5, loc="upper left", ncols=1 + (len(named) > _MAX_LEGEND // 2))


def legend(form: str, labels: Mapping[str, str]) -> str:
    """Grafana's legend: `{{label}}` is a label's value."""
    return _LABEL.sub(lambda match: labels.get(match[1], ""), form).strip()


def write_pictures(server: Prometheus, begin_s: float, end_s: float, folder: Path) -> list[Path]:
    """Writes an SVG for each dashboard, of that time in seconds since the epoch; returns the files."""
    over = TimeRange(begin_s, end_s, max(1.0, (end_s - begin_s) / _NUM_POINTS))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for board in DASHBOARDS:
        path = folder / f"{board.uid.replace('stream2llm', 'dashboard')}.svg"
        path.write_bytes(draw(board, lambda expr: server.query_range(filled_in(expr), over), over))
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.dashboards.pictures", description=__doc__
    )
    parser.add_argument("--prometheus", default="127.0.0.1:9090", help="host:port, plain text")
    parser.add_argument("--last-s", type=float, default=600.0, help="seconds to show")
    parser.add_argument("--end-s", type=float, help="until when, since the epoch; by default now")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"), help="a folder")
    options = parser.parse_args()
    end_s = SystemClock().wall_s() if options.end_s is None else options.end_s
    server = Prometheus(options.prometheus)
    for path in write_pictures(server, end_s - options.last_s, end_s, options.output):
        print(f"written: {path}")


if __name__ == "__main__":
    main()
