"""Single keys of the terminal, and the waiting for them."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import tty
from types import TracebackType
from typing import Any, Self


class Keys:
    """Reads keys without Enter while it is entered; without a terminal it only waits."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        if sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin.fileno())
            tty.setcbreak(sys.stdin.fileno())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> str:
        """Returns what was typed; "" when nothing was for so long."""
        if self._before is None:
            threading.Event().wait(seconds)
            return ""
        ready, _, _ = select.select([sys.stdin.fileno()], [], [], seconds)
        return os.read(sys.stdin.fileno(), 64).decode(errors="replace") if ready else ""
