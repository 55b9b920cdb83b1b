"""Removes the folders that Rays of ours have left: one for each start, with its sockets and logs.

The driver holds a lock on its Ray's folder while it lives, which the kernel takes back also
after SIGKILL. Folders without such a lock are those of Rays that have ended.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
from pathlib import Path

from stream2llm.serving.system.clock import Clock, SystemClock

_log = logging.getLogger(__name__)

# For the logs of what went wrong lately.
SESSIONS_KEPT = 5
LOCK_NAME = "stream2llm.lock"
# Ray creates a folder some seconds before we can lock it.
_YOUNG_S = 3600.0


def hold(session: Path) -> int:
    """Locks the folder of a running Ray while this process lives; returns the descriptor."""
    descriptor = os.open(session / LOCK_NAME, os.O_WRONLY | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def prune(root: Path, kept: int = SESSIONS_KEPT, clock: Clock | None = None) -> list[Path]:
    """Removes the folders of ended Rays below `root`, but for the newest; returns the removed."""
    now_s = (clock or SystemClock()).wall_s()
    folders = [each for each in root.glob("session_2*") if each.is_dir() and not each.is_symlink()]
    ended = [each for each in folders if _has_ended(each, now_s)]
    ended.sort(key=lambda folder: folder.name, reverse=True)
    for folder in ended[kept:]:
        shutil.rmtree(folder, onerror=_not_removed)
    return [each for each in ended[kept:] if not each.exists()]


def _has_ended(folder: Path, now_s: float) -> bool:
    lock = folder / LOCK_NAME
    if not lock.exists():  # it is starting, did not get far, or is none of this version's
        return now_s - folder.stat().st_mtime > _YOUNG_S and not _has_raylet(folder)
    try:
        descriptor = os.open(lock, os.O_WRONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # its driver lives
        return False
    finally:
        os.close(descriptor)
    return True


def _has_raylet(folder: Path) -> bool:
    """Whether a raylet listens in the folder; its socket stays behind when it has ended."""
    path = folder / "sockets" / "raylet"
    if not path.exists():
        return False
    with socket.socket(socket.AF_UNIX) as ours:
        ours.settimeout(1.0)
        try:
            ours.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:  # a path that is too long, or a raylet that is too slow
            return True
    return True


def _not_removed(_function: object, path: str, error: object) -> None:
    _log.warning("session_folder_not_removed path=%s error=%s", path, error)
