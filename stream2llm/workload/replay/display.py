"""What a person sees while a replay runs: one line on a terminal that changes in place."""

from __future__ import annotations

import sys
from typing import Protocol

from stream2llm.workload.replay.driver import Snapshot


class View(Protocol):
    """Sees how far the replay is, some times a second."""

    def show(self, snapshot: Snapshot) -> None: ...

    def close(self) -> None: ...


class Quiet:
    """Nothing: the output is no terminal."""

    def show(self, snapshot: Snapshot) -> None: ...

    def close(self) -> None: ...


class Live:
    """A line on stderr."""

    def __init__(self) -> None:
        from rich.console import Console

        self._status = Console(stderr=True).status("beginning")
        self._status.start()

    def show(self, snapshot: Snapshot) -> None:
        self._status.update(progress_line(snapshot))

    def close(self) -> None:
        self._status.stop()


def make_view() -> View:
    """The one for this process's stderr."""
    return Live() if sys.stderr.isatty() else Quiet()


def progress_line(snapshot: Snapshot) -> str:
    """How far it is, in words."""
    failed = f", {snapshot.num_failed:,} failed" if snapshot.num_failed else ""
    return (
        f"{snapshot.elapsed_s:,.0f} s: {snapshot.num_open:,} open, "
        f"{snapshot.num_answered:,} answered{failed}, of {snapshot.num_planned:,} sessions"
    )
