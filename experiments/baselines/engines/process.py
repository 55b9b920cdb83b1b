"""A host process and its log, as the driver sees them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

END_TIMEOUT_S = 30.0
_LOG_TAIL_BYTES = 4000


class HostProcess:
    """`python -m MODULE FD ARGUMENT`, which ends by itself when the driver closes the socket.

    In a session of its own: Ctrl-C shall reach the driver alone, and whatever the host starts can
    be ended as one group.
    """

    def __init__(self, module: str, connection: socket.socket, argument: str, log: Path) -> None:
        descriptor = connection.fileno()
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(descriptor), argument],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the host, which started all others."""
        return self._process.pid

    def epitaph(self, what: str) -> str:
        """Returns `what` happened, with the end of the log."""
        return f"{what}; {self._log} ends with:\n{self._tail()}"

    def _tail(self) -> str:
        with suppress(OSError):
            return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        return "(no log)"

    async def end(self, within_s: float = END_TIMEOUT_S) -> None:
        """Waits for the host, whose socket is closed, and kills what is left; may be called again."""
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, within_s)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
