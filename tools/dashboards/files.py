"""Which dashboards there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

from tools.dashboards.kv_transfer import KV_TRANSFER
from tools.dashboards.model import Dashboard, Panel
from tools.dashboards.overview import OVERVIEW
from tools.dashboards.prefill import PREFILL
from tools.dashboards.sessions import SESSIONS
from tools.dashboards.tenants import TENANTS
from tools.dashboards.workers import WORKERS

_HEIGHT = 8
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "grafana"
DASHBOARDS = (OVERVIEW, SESSIONS, TENANTS, PREFILL, KV_TRANSFER, WORKERS)


def to_json(board: Dashboard) -> str:
    """The file that Grafana imports."""
    return str(JSONEncoder(sort_keys=True, indent=2).encode(_build(board))) + "\n"


def _build(board: Dashboard) -> Any:
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["stream2llm"])
        .readonly()
        .refresh("10s")
        .time("now-30m", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
        .with_variable(_models())
    )
    numbers = itertools.count(1)
    for row in board.rows:
        builder.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            builder.with_panel(_panel(panel).id(next(numbers)))
    return builder.build()


def _models() -> Any:
    return (
        dashboard.QueryVariable("model")
        .datasource(_SOURCE)
        .query("label_values(stream2llm_sessions_active, model)")
        .include_all(True)
        .all_value(".*")
        .multi(True)
    )


def _panel(panel: Panel) -> Any:
    is_stat = panel.kind == "stat"
    builder: Any = stat.Panel() if is_stat else timeseries.Panel()
    builder.title(panel.title).description(panel.description).datasource(_SOURCE)
    builder.unit(panel.unit).span(panel.width).height(_HEIGHT // 2 if is_stat else _HEIGHT)
    if panel.unit != "none":
        builder.min(0)
    if not is_stat:
        builder.fill_opacity(10).legend(common.VizLegendOptions().show_legend(True))
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend)
        builder.with_target(target.ref_id(chr(ord("A") + index)).range())
    return builder


# File name in FOLDER, and what writes it.
FILES: Mapping[str, Callable[[], str]] = {
    f"{board.uid.removeprefix('stream2llm-')}.json": partial(to_json, board) for board in DASHBOARDS
}
