"""Programs for tests: from the PATH, or Debian's packages, unpacked and not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stream2llm.models.cache import default_cache_dir

_FETCH_TIMEOUT_S = 300.0


def program(name: str, package: str) -> str:
    """The path of a program, to be run in its `environment`.

    Skips the test where neither it nor its package is to be had.
    """
    found = shutil.which(name) or shutil.which(name, path=_path(_unpacked(package)))
    if found is None:
        pytest.skip(f"no {name} here: install the package {package}")
    return found


def environment(program: str) -> dict[str, str]:
    """The environment in which an unpacked program finds the libraries unpacked with it."""
    root = next((each for each in Path(program).parents if each.name == "usr"), Path("/usr"))
    libraries = root / "lib" / f"{os.uname().machine}-linux-gnu"
    folders = (libraries, libraries / "pulseaudio")
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, folders))}


def _path(folder: Path) -> str:
    """Where a package has programs; Chromium's own is beside its data."""
    return f"{folder}/usr/lib/chromium:{folder}/usr/bin"


def _unpacked(package: str) -> Path:
    """The folder of the unpacked package and of what it needs, which may not be there."""
    folder = default_cache_dir() / f"debian-{package}"
    if not folder.exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        _unpack(package, folder)
    return folder


def _unpack(package: str, folder: Path) -> None:
    part = folder.with_suffix(f".part{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    (part / "lists" / "partial").mkdir(parents=True)
    (part / "archives" / "partial").mkdir(parents=True)
    if _fetched(package, part):
        for each in (part / "archives").glob("*.deb"):
            _run("dpkg-deb", "-x", str(each), str(part))
        shutil.rmtree(part / "archives")
        shutil.rmtree(part / "lists")
        if not folder.exists():  # another process may have been faster
            part.rename(folder)
    shutil.rmtree(part, ignore_errors=True)


def _fetched(package: str, part: Path) -> bool:
    """Whether the package, and what of its dependencies is not installed, is in `part` now.

    A fresh machine has no lists of packages, or lists of versions that are gone.
    """
    options = ("-o", f"Dir::Cache::archives={part}/archives", "-o", "Debug::NoLocking=true")
    install = ("install", "--download-only", "--no-install-recommends", "--yes", package)
    if _run("apt-get", *options, *install):
        return True
    options = (*options, "-o", f"Dir::State::lists={part}/lists")
    return _run("apt-get", *options, "update") and _run("apt-get", *options, *install)


def _run(*command: str) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, timeout=_FETCH_TIMEOUT_S)
    return done.returncode == 0
