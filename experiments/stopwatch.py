"""Seconds between two lines of a benchmark."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self


class Stopwatch:
    """`with Stopwatch() as it: ...` leaves the elapsed time in `it.seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._started
