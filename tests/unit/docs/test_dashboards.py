"""The dashboards and alerts that are shipped: up to date, and of metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.prometheus import program
from tools.dashboards.files import DASHBOARDS, FILES, FOLDER
from tools.reference.pages import PAGES

pytestmark = pytest.mark.unit

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
