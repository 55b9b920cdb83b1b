"""Seconds between two lines of a benchmark."""

from __future__ import annotations

import time
from typing import Self


class Stopwatch:
    """`with Stopwatch() as it: ...` leaves the elapsed time in `it.seconds`.

    `it.cpu_seconds` are those that this process has computed; others on the machine do not
    add to them.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._started = 0.0
        self._cpu_started = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._cpu_started = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_seconds = time.process_time() - self._cpu_started
        self.seconds = time.perf_counter() - self._started
