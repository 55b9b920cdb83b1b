"""The dashboards and alerts that are shipped: up to date, of metrics that exist; and drawings of them."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.prometheus import program
from tools.dashboards import pictures
from tools.dashboards.files import DASHBOARDS, FILES, FOLDER
from tools.dashboards.model import Dashboard, Row
from tools.dashboards.pictures import Ask, draw, legend, shortened
from tools.dashboards.prometheus import Prometheus, Series, TimeRange
from tools.dashboards.sessions import SESSIONS
from tools.reference.pages import PAGES

ROOT = Path(__file__).parents[3]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
EXPRESSIONS = [
    *(query.expr for board in DASHBOARDS for panel in board.panels for query in panel.queries),
    *(rule["expr"] for rule in RULES),
]


@pytest.mark.parametrize("name", FILES)
def test_a_committed_dashboard_is_what_the_tables_give(name: str) -> None:
    assert (FOLDER / name).read_text() == FILES[name](), "run `make dashboards` and commit"


@pytest.mark.parametrize("name", FILES)
def test_panels_have_numbers_and_room_of_their_own(name: str) -> None:
    panels = json.loads(FILES[name]())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    corners = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(corners)) == len(corners)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_every_metric_that_is_asked_for_exists() -> None:
    known = set(re.findall(r"^\| `(\w+)`", PAGES["metrics.md"](), re.M))
    asked = {name for expr in EXPRESSIONS for name in re.findall(r"\bstream2llm_\w+", expr)}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= known
    assert len(asked) > 20


def metrics_of(*sections: str) -> set[str]:
    """Names of the metrics in those sections of the reference; histograms by their base name."""
    parts = re.split(r"^## ", PAGES["metrics.md"](), flags=re.M)
    chosen = [part for part in parts if part.partition("\n")[0] in sections]
    assert len(chosen) == len(sections)
    return set(re.findall(r"^\| `(\w+)`", "\n".join(chosen), re.M))


def test_a_cluster_of_mixed_workers_alone_leaves_no_panel_empty() -> None:
    """What only decode workers count, and hand-overs, is 0 there; tests of a cluster ask for the rest."""
    of_handovers = {"stream2llm_handover_exposed_seconds", "stream2llm_handover_latency_seconds"}
    absent = metrics_of("Decode worker") | of_handovers
    assert absent & metrics_of("Prefill or mixed worker", "Decode or mixed worker") == set()
    asked = [
        query.expr for board in DASHBOARDS for panel in board.panels for query in panel.queries
    ]
    for expr in asked:
        names = {
            re.sub(r"_(bucket|sum|count)$", "", n) for n in re.findall(r"stream2llm_\w+", expr)
        }
        assert not names & absent or expr.endswith(" or vector(0)"), expr
        roles = re.findall(r'role=~?"([^"]*)"', expr)
        assert all(not role or "mixed" in role.split("|") for role in roles), expr


def test_every_alert_has_its_page() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.M)
    assert headings == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"runbook.md#{rule['alert'].lower()}"


def test_alerts_fire_when_they_should() -> None:
    test = ALERTS.with_name("alerts.test.yaml")
    command = [program("promtool"), "test", "rules", str(test)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = set(re.findall(r"alertname: (\w+)", test.read_text()))
    assert tried == {rule["alert"] for rule in RULES}


# -- drawings: every panel, with the lines that its queries give --------------------------


MAX_BYTES = 300_000


def test_every_panel_and_line_is_drawn() -> None:
    asked: list[str] = []

    def ask(expr: str) -> list[Series]:
        asked.append(expr)
        if expr == asked[0]:
            return [Series({}, [(1.0, 0.0), (2.0, float("nan"))])]
        labels = {"phase": "prefilling", "op": "append", "input_mode": "x", "ordering": "stable"}
        return [Series(labels, [(1.0, 2.0), (2.0, 3.0)])]

    text = draw(SESSIONS, ask, TimeRange(1.0, 2.0)).decode()
    assert asked == [query.expr for panel in SESSIONS.panels for query in panel.queries]
    for panel in SESSIONS.panels:
        assert f">{panel.title}</text>" in text
    assert ">append</text>" in text


def test_equal_answers_give_equal_files_and_a_later_line_stays_later() -> None:
    one_panel = replace(SESSIONS, rows=(Row("a row", SESSIONS.panels[:1]),))

    def drawn(begin_s: float) -> bytes:
        series = Series({"phase": "decoding"}, [(begin_s, 1.0), (10.0, 1.0)])
        return draw(one_panel, lambda _: [series], TimeRange(0.0, 10.0))

    assert drawn(0.0) == drawn(0.0) != drawn(5.0)


class Recorded(Prometheus):
    """Has nothing, and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:0")
        self.asked: list[tuple[str, TimeRange]] = []

    def query_range(self, expr: str, over: TimeRange) -> list[Series]:
        self.asked.append((expr, over))
        return []


def ask_all(board: Dashboard, ask: Ask, _: TimeRange) -> bytes:
    """Asks as a drawing does, and takes no time to lay it out."""
    for panel in board.panels:
        for query in panel.queries:
            ask(query.expr)
    return board.title.encode()


def test_there_is_a_picture_of_each_dashboard_over_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "draw", ask_all)
    server = Recorded()
    written = pictures.write_pictures(server, 1000.0, 1400.0, tmp_path / "figures")
    assert [path.read_text() for path in written] == [board.title for board in DASHBOARDS]
    assert {over for _, over in server.asked} == {TimeRange(1000.0, 1400.0, 2.0)}
    assert len(server.asked) > 60
    assert not [expr for expr, _ in server.asked if "$" in expr]
    # Those of the documentation are all there, and small enough to be read with their page.
    page = (ROOT / "docs" / "dashboards.md").read_text()
    for path in written:
        assert f"](figures/{path.name})" in page
        assert (ROOT / "docs" / "figures" / path.name).stat().st_size < MAX_BYTES


def test_coordinates_are_cut_and_versions_are_not() -> None:
    assert shortened(b"M 45.493678 -3.5 3.11.2 0.129") == b"M 45.49 -3.5 3.11.2 0.12"


def test_a_legend_names_labels() -> None:
    assert legend("P50 {{ mode }} {{gone}}", {"mode": "append"}) == "P50 append"
