"""Ends an engine process whose parent died.

vLLM's EngineCore waits for its next message for ever when its front end is killed,
and keeps its memory and its KV. Its workers do end with it (they watch a pipe), so
watching EngineCore's parent is enough.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading

_log = logging.getLogger(__name__)


def exit_with_parent() -> None:
    """Starts a thread that ends this process as soon as its parent has ended.

    Does nothing in a process that multiprocessing did not start, which has no such
    parent.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        _log.error("parent process %s is gone: exiting", parent.pid)
        os._exit(1)

    threading.Thread(target=wait, name="orphan-guard", daemon=True).start()
