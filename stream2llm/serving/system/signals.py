"""Handles Ctrl-C and SIGTERM in a program that has to clean up."""

from __future__ import annotations

import signal
from types import FrameType


def catch_signals() -> None:
    """The first Ctrl-C or SIGTERM interrupts; later ones must not disturb the clean-up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
