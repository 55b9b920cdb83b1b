"""The wheel of this checkout, and environments that have it and nothing of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What it prints; a failure shows all of it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def pip_of(programs: Path) -> tuple[str | Path, ...]:
    """Our pip at work on another environment, which so has nothing but what it brings."""
    return (sys.executable, "-m", "pip", "--python", programs / "python")


def build_wheel(source: Path, built: Path) -> Path:
    """Built from the source distribution, so that this one is complete, too."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(lambda name: (ROOT / name).is_file(), listed.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, built, cwd=source)
    (sdist,) = built.glob("*.tar.gz")
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", built)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", *options, sdist)
    (found,) = built.glob("*.whl")
    return found


def environment_with(folder: Path, requirement: str) -> Path:
    """The programs of an environment with that and what it brings, from the index."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    run(*pip_of(folder / "bin"), "install", "--quiet", "--no-compile", requirement)
    return folder / "bin"
