"""The policies that docs/scheduling.md shows, as a module that can be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_PAGE = Path(__file__).parents[1] / "docs" / "scheduling.md"


def install_example(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str = "example") -> str:
    """Writes the page's example into the folder and puts it on the path; the module's name."""
    _, _, section = _PAGE.read_text().partition("## Write a policy")
    code = section.partition("```python\n")[2].partition("```")[0]
    return install_module(folder, monkeypatch, module, code)


def install_module(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, code: str) -> str:
    """The same for other code."""
    (folder / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)
    return module
