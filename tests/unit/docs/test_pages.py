"""What the pages of docs/ name exists, and what they ought to name is named."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream2llm.api.errors import ERRORS_BY_STATUS
from tools.reflow import overlong, reflow

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
# The changelog also describes the past.
PAGES = sorted(
    path
    for path in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    if path.stem != "changelog"
)
PACKAGES = ("router", "prefill_worker", "decode_worker", "cost_profiles", "stream2llm")
_PATH_IN_CODE = re.compile(r"`((?:[\w.*-]+/)+[\w.*-]+\.(?:py|proto|json|yaml|yml|md|lock|txt))`")
_REASON = re.compile(r"[A-Z][A-Z_]+")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(_PATH_IN_CODE.findall(page.read_text()))
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    ours = {name for name in named if name.split("/")[0] in tops}
    assert not {name for name in ours if not any(ROOT.glob(name))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_has_lines_of_at_most_120_characters(page: Path) -> None:
    assert not overlong(page.read_text()), "run `python -m tools.reflow` on the page"


def test_troubleshooting_has_every_reason_of_an_error_and_no_other() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    known = set(re.findall(r"`([A-Z][A-Z_]+)`", page))
    raised = {reason for package in PACKAGES for reason in _reasons_in(ROOT / package)}
    raised |= {cls.default_reason for cls in ERRORS_BY_STATUS.values()}
    assert len(raised) > 40
    assert not raised - known
    sources = "".join(path.read_text() for each in PACKAGES for path in (ROOT / each).rglob("*.py"))
    assert not {reason for reason in known if f'"{reason}"' not in sources}


def test_prose_is_wrapped_and_nothing_else_is_touched() -> None:
    long = "word " * 30
    verbatim = f"| {long} |\n\n```\n{long}\n```\n\n# {long}\n\n    {long}\n"
    assert reflow(verbatim) == verbatim
    assert overlong(f"short\n\n- {long}\n  more") == [3]
    item = reflow(f"- {long}\n  more").split("\n")
    assert [line[:2] for line in item] == ["- ", "  "]
    assert max(map(len, item)) <= 120
    assert "\n- " not in reflow("x " * 59 + "- " + "y " * 10)


def _reasons_in(folder: Path) -> Iterator[str]:
    """Reasons that are written as `reason="..."` or `default_reason = "..."`."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                value: ast.expr | None = node.value
            elif isinstance(node, ast.Assign) and "default_reason" in ast.dump(node.targets[0]):
                value = node.value
            else:
                continue
            if isinstance(value, ast.Constant) and _REASON.fullmatch(str(value.value)):
                yield str(value.value)


def test_a_table_in_a_list_item_keeps_its_lines() -> None:
    item = "- " + "word " * 40 + "\n  | a | b |\n  |---|---|\n  | 1 | 2 |"
    assert reflow(item).endswith("\n  | a | b |\n  |---|---|\n  | 1 | 2 |")
