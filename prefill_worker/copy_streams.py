"""CopyStreams of work on a device, and points in them: what a copier needs to know of CUDA streams.

As Protocols, so that a test can have lanes that work as late, and in as bad an
order, as a device may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import torch

M = TypeVar("M", bound="Mark")


class Mark(Protocol):
    """A point in a lane's work."""

    def is_reached(self) -> bool:
        """Whether all work before it is done."""
        ...

    def wait(self) -> None:
        """Blocks until it is."""
        ...

    def seconds_since(self, earlier: Self) -> float:
        """Time between two marks that have been reached."""
        ...


class CopyStream(Protocol[M]):
    """A queue of work that a device does in order, beside its other lanes."""

    def run(self, work: Callable[[], None]) -> None:
        """Queues what `work` asks of the device."""
        ...

    def mark(self) -> M:
        """The point behind all that has been queued."""
        ...

    def wait_for(self, mark: M) -> None:
        """What is queued from now on begins after a mark of another lane."""
        ...


class CudaMark:
    """A CUDA event."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def is_reached(self) -> bool:
        """Asks the device."""
        return bool(self.event.query())

    def wait(self) -> None:
        """Blocks the thread."""
        self.event.synchronize()

    def seconds_since(self, earlier: Self) -> float:
        """As the device measured it."""
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class CudaCopyStream:
    """A CUDA stream; None is the one that is current when it is used."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._own = stream

    @property
    def _stream(self) -> torch.cuda.Stream:
        return self._own if self._own is not None else torch.cuda.current_stream()

    def run(self, work: Callable[[], None]) -> None:
        """Memory that `work` allocates belongs to this stream, so its reuse is in order too."""
        with torch.cuda.stream(self._stream):
            work()

    def mark(self) -> CudaMark:
        """An event that can be timed."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return CudaMark(event)

    def wait_for(self, mark: CudaMark) -> None:
        """The device waits, not the thread."""
        self._stream.wait_event(mark.event)
