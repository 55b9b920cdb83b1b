"""A dashboard as a drawing: every panel, with the lines that its queries give."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.dashboards.draw import Series, draw, legend
from tools.dashboards.sessions import SESSIONS

pytestmark = pytest.mark.unit


def test_every_panel_and_line_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "board.svg"
    asked: list[str] = []

    def ask(expr: str) -> list[Series]:
        asked.append(expr)
        if expr == asked[0]:
            return [Series({}, [(1.0, 0.0), (2.0, float("nan"))])]
        labels = {"phase": "prefilling", "op": "append", "input_mode": "x", "ordering": "stable"}
        return [Series(labels, [(1.0, 2.0), (2.0, 3.0)])]

    draw(SESSIONS, ask, path)
    text = path.read_text()
    assert asked == [query.expr for panel in SESSIONS.panels for query in panel.queries]
    for panel in SESSIONS.panels:
        assert f"<!-- {panel.title} -->" in text
    assert "<!-- append -->" in text


def test_a_legend_names_labels() -> None:
    assert legend("P50 {{ mode }} {{gone}}", {"mode": "append"}) == "P50 append"
