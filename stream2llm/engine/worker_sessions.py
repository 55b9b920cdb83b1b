"""The open sessions of a worker: counted, and ended when a drain has lasted long enough."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from stream2llm.api.errors import UnavailableError

_log = logging.getLogger(__name__)

# For sessions that a drain has ended to free what they hold.
_END_GRACE_S = 2.0


class WorkerSessions:
    """A session is the task that serves it. Use it in one event loop."""

    def __init__(self) -> None:
        self.is_draining = False
        self._tasks: set[asyncio.Task[object]] = set()
        # Those that a drain has cancelled.
        self._ended: weakref.WeakSet[asyncio.Task[object]] = weakref.WeakSet()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_open(self) -> int:
        """Number of open sessions."""
        return len(self._tasks)

    def require_open(self) -> None:
        """Raises UnavailableError when new sessions are refused."""
        if self.is_draining:
            raise UnavailableError("the worker is draining", reason="DRAINING")

    @contextmanager
    def one(self) -> Iterator[None]:
        """The present task serves a session; see `reported`."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._idle.clear()
        try:
            with self.reported():
                yield
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._idle.set()

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Raises UnavailableError (DRAINING) when a drain ends the session of the present task.

        Its peer can place the session elsewhere. Needed around what serves a session outside
        `one`, too, for a drain ends the session wherever its task is.
        """
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task not in self._ended:
                raise
            self._ended.discard(task)
            if task.uncancel() > 0:  # its peer has left, too
                raise
            raise UnavailableError(
                "the worker is draining, and the time that open sessions had is over",
                reason="DRAINING",
            ) from None

    async def drain(self, timeout_s: float) -> None:
        """Refuses new sessions, waits for the open ones, and ends those that remain."""
        self.is_draining = True
        if await self._is_idle_within(timeout_s):
            return
        _log.warning("drain_timed_out limit_s=%s num_sessions=%d", timeout_s, self.num_open)
        for task in tuple(self._tasks):
            self._ended.add(task)
            task.cancel()
        await self._is_idle_within(_END_GRACE_S)

    async def _is_idle_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
