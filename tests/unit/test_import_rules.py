"""Who may import whom: the contracts of [tool.importlinter] in pyproject.toml."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
LAYERS, _, PURE = SETTINGS["contracts"]


@pytest.fixture(scope="module")
def graph() -> Any:
    return grimp.build_graph(
        *SETTINGS["root_packages"],
        include_external_packages=True,
        exclude_type_checking_imports=True,
        cache_dir=None,
    )


def test_the_contracts_hold() -> None:
    """In a process of its own: import-linter's logging disables all loggers that there are."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_has_its_place(graph: Any) -> None:
    rooms = {each for layer in LAYERS["layers"] for each in layer.split(" | ")}
    packages = {*graph.find_children("stream2llm"), *SETTINGS["root_packages"]} - {"stream2llm"}
    assert rooms == packages


def test_a_module_that_calls_itself_pure_is_held_to_it() -> None:
    """Their docstrings say so in a sentence that begins with "Pure"."""
    named = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in SETTINGS["root_packages"]
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"\bPure\b", ast.get_docstring(ast.parse(path.read_text())) or "")
    }
    assert len(named) > 50
    assert named <= set(PURE["source_modules"])


@pytest.mark.parametrize("component", ["router", "prefill_worker", "decode_worker"])
def test_every_pure_module_of_a_component_is_held_to_it(graph: Any, component: str) -> None:
    """A module that imports nothing that acts has to stay so."""
    machinery = [each for each in PURE["forbidden_modules"] if each in graph.modules]
    pure = {
        module
        for module in graph.find_descendants(component)
        if not any(graph.chain_exists(module, each) for each in machinery)
    }
    assert pure == {m for m in PURE["source_modules"] if m.startswith(f"{component}.")}
