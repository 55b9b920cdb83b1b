"""Who may import whom: the pure modules nothing of the machinery, the components not each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
COMPONENTS = ("router", "prefill_worker", "decode_worker")
MACHINERY = {"vllm", "ray", "grpc", "nixl", "torch", "asyncio", "threading", "time", "logging"}
PURE = [
    *(
        f"prefill_worker/{name}.py"
        for name in (
            "types",
            "policy",
            "planner",
            "victims",
            "preemption",
            "trials",
            "host_pool",
            "swap_jobs",
            "kv_transfer",
            "rank_index",
            "patience",
            "book",
            "session_state",
            "report",
            "limits",
        )
    ),
    *(
        f"router/{name}.py"
        for name in (
            "arrangement",
            "context",
            "lengths",
            "ordering",
            "placement",
            "progress",
            "ranking_note",
        )
    ),
    "decode_worker/handover_check.py",
    "stream2llm/request_check.py",
    "stream2llm/session.py",
    "stream2llm/prefix.py",
    "stream2llm/supervision.py",
]


def imports_of(path: Path) -> set[str]:
    """Dotted names of what a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", PURE)
def test_pure_modules_know_no_machinery(path: str) -> None:
    tops = {name.split(".")[0] for name in imports_of(ROOT / path)}
    assert not tops & MACHINERY


@pytest.mark.parametrize("path", PURE)
def test_pure_modules_of_ours_import_pure_ones_only(path: str) -> None:
    folder = path.split("/")[0]
    if folder == "stream2llm":
        return
    inside = {name for name in imports_of(ROOT / path) if name.startswith(f"{folder}.")}
    modules = {name.split(".")[1] for name in inside}
    allowed = {Path(each).stem for each in PURE if each.startswith(folder)} | {"types"}
    assert modules <= allowed


@pytest.mark.parametrize("component", COMPONENTS)
def test_components_do_not_import_each_other(component: str) -> None:
    others = set(COMPONENTS) - {component}
    for path in (ROOT / component).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports_of(path)} & others, path
