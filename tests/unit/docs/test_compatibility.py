"""docs/compatibility.md says what pyproject.toml and the lock say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROWS = re.findall(
    r"^\| ([\w-]+) \| `([^`]+)` \| ([\d.]*) ?\|",
    (ROOT / "docs" / "compatibility.md").read_text(),
    re.MULTILINE,
)


def asked_for() -> dict[str, str]:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    found = {each.name.lower(): str(each.specifier) for each in map(Requirement, lines)}
    return {**found, "python": PROJECT["requires-python"]}


def locked() -> dict[str, str]:
    text = "".join((ROOT / "requirements" / name).read_text() for name in ("cpu.lock", "torch.txt"))
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(("package", "wanted", "tried"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_is_what_the_project_asks_for_and_the_lock_has(
    package: str, wanted: str, tried: str
) -> None:
    assert set(wanted.split(",")) == set(asked_for()[package].split(","))
    if package != "python":
        assert tried == locked().get(package, "")


def test_what_must_fit_exactly_is_in_the_table() -> None:
    exact = {name for name, wanted in asked_for().items() if wanted.startswith("==")}
    of_development = {"grpcio-tools", "grafana-foundation-sdk"}
    assert exact - of_development <= {row[0] for row in ROWS}
    assert len(ROWS) > 10
