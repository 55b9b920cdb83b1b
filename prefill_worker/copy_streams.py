"""Streams of work on a device, and marks in them: the part of CUDA that a copier uses.

Protocols, so that a test can use streams that run as late, and in as bad an
order, as a device may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import torch

M = TypeVar("M", bound="Mark")


class Mark(Protocol):
    """A point in a stream's work."""

    def is_reached(self) -> bool:
        """Whether all work before it is done."""

    def wait(self) -> None:
        """Blocks until all work before it is done."""

    def seconds_since(self, earlier: Self) -> float:
        """Returns the time between two marks that have been reached."""


class CopyStream(Protocol[M]):
    """A queue of work that a device does in order, concurrently with other streams."""

    def run(self, work: Callable[[], None]) -> None:
        """Queues the device work that `work` issues."""

    def mark(self) -> M:
        """Returns the point behind all that has been queued."""

    def wait_for(self, mark: M) -> None:
        """Makes work queued from now on wait for a mark of another stream."""


class CudaMark:
    """A CUDA event."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def is_reached(self) -> bool:
        """Queries the device."""
        return bool(self.event.query())

    def wait(self) -> None:
        """Blocks the thread."""
        self.event.synchronize()

    def seconds_since(self, earlier: Self) -> float:
        """Returns the device's own measurement."""
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class CudaCopyStream:
    """A CUDA stream; None stands for the stream that is current at each call."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._own = stream

    @property
    def _stream(self) -> torch.cuda.Stream:
        return self._own if self._own is not None else torch.cuda.current_stream()

    def run(self, work: Callable[[], None]) -> None:
        """Allocations of `work` belong to this stream, so their reuse is in order too."""
        with torch.cuda.stream(self._stream):
            work()

    def mark(self) -> CudaMark:
        """Records an event with timing."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return CudaMark(event)

    def wait_for(self, mark: CudaMark) -> None:
        """Makes the device wait, not the thread."""
        self._stream.wait_event(mark.event)
