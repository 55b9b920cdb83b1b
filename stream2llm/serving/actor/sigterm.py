"""SIGTERM at an actor's process: it reaches the actor's event loop instead of ending the process.

Python lets only the main thread set a signal's handler, and calls it there once that thread runs
Python code again. A Ray worker's main thread waits in C++ and has a handler of Ray's, which
ends the process; the actor lives in another thread. So Ray calls `keep_for_actor` in the main
thread of the new process (`SETUP_HOOK`), and the signal reaches the loop over the wake-up
descriptor, which the interpreter writes to at once.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

# The environment variable by which Ray 2.60 finds a worker process's hook, and ours.
SETUP_HOOK = {
    "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "stream2llm.serving.actor.sigterm.keep_for_actor"
}


class Sigterm:
    """Create it in the main thread; it replaces the handler of the process."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def watch(self, react: Callable[[], object]) -> None:
        """Calls `react` in the present loop when SIGTERM arrives, once."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            if signal.SIGTERM in self._reader.recv(64):
                loop.remove_reader(self._reader)
                react()

        loop.add_reader(self._reader, read)


# One list for the process: a signal has one handler.
_kept: list[Sigterm] = []


def keep_for_actor() -> None:
    """For Ray: keeps SIGTERM for the actor that the process will host."""
    from ray._private import utils

    def keep(_handler: Any) -> None:
        if not _kept:
            _kept.append(Sigterm())

    # Ray's main loop sets its handler with it.
    utils.set_sigterm_handler = keep


def kept_sigterm() -> Sigterm | None:
    """Returns what `keep_for_actor` has kept, None where Ray did not call it."""
    return _kept[0] if _kept else None
