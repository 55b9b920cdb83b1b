"""`make gpu-lock`: requirements/gpu.lock, and what of both locks images leave out.

The lock of CPU environments is made by hand (its head says how); the one for CUDA is resolved
by `uv pip compile` from pyproject.toml, with the versions of the CPU lock wherever they fit, so
that what every test runs on is what GPUs run. Images take a lock less the distributions that
only development and figures need; their names are in requirements/not-in-images.txt.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
CPU_LOCK, TORCH, GPU_LOCK = (FOLDER / name for name in ("cpu.lock", "torch.txt", "gpu.lock"))
NOT_IN_IMAGES = FOLDER / "not-in-images.txt"
ENVIRONMENT_OF_GPUS = ("gpu", "plot", "dev")
IMAGE = ("cpu",)
IMAGE_OF_GPUS = ("gpu",)

# Instead of what distributions ask for.
_OVERRIDES = """\
# grpcio-tools asks for protobuf 6, and its stubs run under 7, which the others want.
protobuf>=6.31.1
# FastAPI's deployment command with its telemetry, which no server of ours runs.
fastapi-cli ; sys_platform == 'none'
"""
_HEAD = """\
# Everything for CUDA machines (Linux x86-64, Python 3.11), pinned. `make env EXTRA=gpu` and the
# CUDA image install it with --no-deps.
#
# How it was made: `make gpu-lock`, which has `uv pip compile` resolve the extras gpu, plot and dev
# of pyproject.toml for manylinux_2_28, with the versions of cpu.lock and torch.txt wherever they
# fit (tools/locks.py has the exceptions). The metadata fit; the engines have not run on them yet.
"""
_NOT_IN_IMAGES_HEAD = """\
# Names in cpu.lock and gpu.lock that images leave out: tools of development, and what draws
# figures. Made by `make gpu-lock`; a test holds it.
"""


def pins(*locks: Path) -> dict[str, str]:
    """The version of each distribution, by its name in normal form."""
    return pins_in("".join(lock.read_text() for lock in locks))


def pins_in(text: str) -> dict[str, str]:
    """The same of the text of a lock."""
    found = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def wanted(extras: Iterable[str]) -> list[str]:
    """The lines of pyproject.toml for the base and these extras, those of extras within too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    todo = list(extras)
    while todo:
        for line in project["optional-dependencies"][todo.pop()]:
            within = re.match(r"stream2llm\[(\w+)\]$", line)
            if within:
                todo.append(within[1])
            else:
                lines.append(line)
    return lines


def needed(lines: Iterable[str], among: Iterable[str]) -> set[str]:
    """The distributions of a lock that these requirements need, by what is installed here.

    What the lock leaves out is not followed. Raises PackageNotFoundError for one of the lock that
    is not installed.
    """
    locked = set(among)
    todo = [Requirement(line) for line in lines]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name in locked and (name, extras) not in seen:
            seen.add((name, extras))
            todo += _requires(name, extras)
    return {name for name, _ in seen}


def _requires(name: str, extras: frozenset[str]) -> list[Requirement]:
    found = [Requirement(line) for line in requires(name) or ()]
    environments = [{"extra": extra} for extra in (extras or {""})]
    return [
        each
        for each in found
        if each.marker is None or any(map(each.marker.evaluate, environments))
    ]


def not_in_images(image_of_gpus: Iterable[str]) -> str:
    """The text of requirements/not-in-images.txt.

    What the image of CPUs needs is read from what is installed in this environment.
    """
    locked = pins(CPU_LOCK, TORCH).keys()
    names = sorted(locked - needed(wanted(IMAGE), locked) - set(image_of_gpus))
    return _NOT_IN_IMAGES_HEAD + "".join(f"{name}\n" for name in names)


def resolved_for_gpus(extras: Iterable[str], known: Mapping[str, str]) -> str:
    """The lines of a lock; `known` versions are taken where they fit. Needs uv and an index."""
    with TemporaryDirectory() as folder:
        asked, lock, overrides = (Path(folder) / name for name in ("in", "lock", "overrides"))
        asked.write_text("\n".join(wanted(extras)))
        overrides.write_text(_OVERRIDES)
        # uv keeps the versions of a lock that is there already, where it can.
        lock.write_text("".join(f"{name}=={version}\n" for name, version in known.items()))
        command = [
            sys.executable, "-m", "uv", "pip", "compile", str(asked), "--output-file", str(lock),
            "--override", str(overrides), "--python-version", "3.11",
            "--python-platform", "x86_64-manylinux_2_28",
            "--no-header", "--no-annotate", "--quiet",
        ]  # fmt: skip
        subprocess.run(command, check=True)
        return lock.read_text()


def write() -> None:
    """Writes both files; raises PackageNotFoundError in an incomplete environment."""
    everything = resolved_for_gpus(ENVIRONMENT_OF_GPUS, pins(CPU_LOCK, TORCH))
    GPU_LOCK.write_text(f"{_HEAD}\n{everything}")
    image = pins_in(resolved_for_gpus(IMAGE_OF_GPUS, pins(GPU_LOCK)))
    if not image.items() <= pins(GPU_LOCK).items():
        raise SystemExit("the image of GPUs needs other versions than their environment")
    NOT_IN_IMAGES.write_text(not_in_images(image))


if __name__ == "__main__":
    try:
        write()
    except PackageNotFoundError as error:
        raise SystemExit(f"{error}: run `make env` first") from None
    print("wrote requirements/gpu.lock and requirements/not-in-images.txt")
