"""Code in strings and on pages, which no checker of types reads, imports what exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "stream2llm|router|prefill_worker|decode_worker|cost_profiles|tests|experiments|examples|tools"
)
_IMPORT = re.compile(rf"^\s*from ((?:{PACKAGES})(?:\.\w+)*) import \(?([\w, ]+)", re.MULTILINE)
_FACTORY = re.compile(rf"^((?:{PACKAGES})(?:\.\w+)+):([A-Za-z_]\w*)$")
EXAMPLES = re.compile(r"\b(?:example|no_such_module)\b")
FOLDERS = [*PACKAGES.split("|"), "docs", "deploy"]


def texts() -> Iterator[tuple[Path, str]]:
    """Each string of our modules, and each page."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield path, node.value
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        if page.stem != "changelog":  # it also describes the past
            yield page, page.read_text()


def named() -> Iterator[tuple[Path, str, str]]:
    """Module and name of each import, and of each `module:name`."""
    for path, text in texts():
        for module, names in _IMPORT.findall(text):
            for name in names.split(","):
                if name.strip():
                    yield path, module, name.split(" as ")[0].strip()
        if (found := _FACTORY.match(text)) and not EXAMPLES.search(text):
            yield path, found[1], found[2]


def module_path(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    files = [path.with_suffix(".py"), path / "__init__.py"]
    return next((file for file in files if file.exists()), None)


@cache
def defined(module: str) -> frozenset[str]:
    """Names that a module defines: read, since an import may need an extra."""
    if (path := module_path(module)) is None:
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
    return frozenset(names)


def exists(module: str, name: str) -> bool:
    """A name of the module, or a module of the package."""
    return name in defined(module) or module_path(f"{module}.{name}") is not None


def test_what_code_in_text_imports_exists() -> None:
    found = list(named())
    assert len(found) > 40
    missing = [each for each in found if not exists(*each[1:])]
    assert not [f"{path.relative_to(ROOT)}: {module}.{name}" for path, module, name in missing]
