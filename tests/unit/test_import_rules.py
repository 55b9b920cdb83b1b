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
    "stream2llm/serving/request_check.py",
    "stream2llm/api/session.py",
    "stream2llm/serving/prefix.py",
    "stream2llm/cluster/supervision.py",
]


# Values that pure modules may share: their folder's `types`, and those of stream2llm that are
# held to the same rules below.
LEAVES = {"types", "errors"}


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
    assert impure_imports(folder, imports_of(ROOT / path)) == set()


def impure_imports(folder: str, names: set[str]) -> set[str]:
    """Modules of this folder that are imported and not known as pure."""
    modules = {name.split(".")[1] for name in names if name.startswith(f"{folder}.")}
    pure = {Path(each).stem for each in PURE if each.startswith(f"{folder}/")}
    return modules - pure - LEAVES


@pytest.mark.parametrize("folder", ["router", "prefill_worker", "stream2llm"])
def test_an_import_of_machinery_of_ours_would_be_found(folder: str) -> None:
    own = next(Path(each).stem for each in PURE if each.startswith(f"{folder}/"))
    names = {f"{folder}.actor", f"{folder}.{own}", "json", "json.decoder"}
    assert impure_imports(folder, names) == {"actor"}


@pytest.mark.parametrize("path", sorted(f"stream2llm/{name}.py" for name in LEAVES - {"types"}))
def test_leaves_import_nothing_of_ours_but_leaves(path: str) -> None:
    names = imports_of(ROOT / path)
    tops = {name.split(".")[0] for name in names}
    assert not tops & (MACHINERY | set(COMPONENTS))
    assert impure_imports("stream2llm", names) == set()


@pytest.mark.parametrize("component", COMPONENTS)
def test_components_do_not_import_each_other(component: str) -> None:
    others = set(COMPONENTS) - {component}
    for path in (ROOT / component).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports_of(path)} & others, path
