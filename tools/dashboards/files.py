"""Which dashboards there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tools.dashboards.grafana import to_json
from tools.dashboards.kv_transfer import KV_TRANSFER
from tools.dashboards.overview import OVERVIEW
from tools.dashboards.prefill import PREFILL
from tools.dashboards.sessions import SESSIONS
from tools.dashboards.tenants import TENANTS
from tools.dashboards.workers import WORKERS

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "grafana"
DASHBOARDS = (OVERVIEW, SESSIONS, TENANTS, PREFILL, KV_TRANSFER, WORKERS)
# File name in FOLDER, and what writes it.
FILES: Mapping[str, Callable[[], str]] = {
    f"{board.uid.removeprefix('stream2llm-')}.json": partial(to_json, board) for board in DASHBOARDS
}
