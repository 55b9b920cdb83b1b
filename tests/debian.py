"""Programs for tests: from the PATH, or Debian's packages, unpacked and not installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from stream2llm.models.cache import default_cache_dir

_FETCH_TIMEOUT_S = 120.0


def program(name: str, packages: Sequence[str]) -> str:
    """The path of a program; skips the test where neither it nor its packages are to be had.

    The first of `packages` has it; the others are libraries that it needs.
    """
    found = shutil.which(name) or shutil.which(name, path=str(unpacked(packages) / "usr" / "bin"))
    if found is None:
        pytest.skip(f"no {name} here: install the package {packages[0]}")
    return found


def unpacked(packages: Sequence[str]) -> Path:
    """The folder of the unpacked packages, which may not be there."""
    folder = default_cache_dir() / f"debian-{packages[0]}"
    if not folder.exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        _unpack(packages, folder)
    return folder


def _unpack(packages: Sequence[str], folder: Path) -> None:
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    options = {"cwd": part, "capture_output": True, "timeout": _FETCH_TIMEOUT_S}
    fetched = subprocess.run(["apt-get", "download", *packages], check=False, **options)  # type: ignore[call-overload]
    if fetched.returncode == 0:
        for package in part.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package.name, "."], check=True, **options)  # type: ignore[call-overload]
        part.rename(folder)
