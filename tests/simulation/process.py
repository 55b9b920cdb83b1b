"""A process of the simulated cluster: runs, stands still, or is dead.

Its tasks are those that its own code starts. SIGKILL is modelled by cutting it off from the
network first, then cancelling its tasks: what they do on their way out has no effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any

from tests.simulation.loop import PROCESS, VirtualLoop, VirtualTask

# Cancellations of a dead process's tasks, which may catch some of them.
_MOST_CANCELS = 100


class Process:
    """One operating system process."""

    def __init__(self, name: str, loop: VirtualLoop) -> None:
        self.name = name
        self.loop = loop
        self.is_alive = True
        self.is_frozen = False
        self.tasks: set[VirtualTask] = set()
        self.parked: list[Any] = []
        # Done when it is dead; its waiters wait in other processes.
        self.ended: asyncio.Future[None] = loop.create_future()
        # Called when it dies: the kernel closes its connections.
        self.on_death: list[Callable[[], None]] = []
        self._context = copy_context()
        self._context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def spawn(self, work: Coroutine[Any, Any, Any]) -> VirtualTask:
        """Runs work as a task of this process."""
        context = self._context.copy()
        task = self.loop.create_task(work, context=context)
        assert isinstance(task, VirtualTask)
        return task

    def call(self, callback: Callable[..., Any], *args: Any, delay_s: float = 0.0) -> None:
        """Calls back in this process; when it goes on, if it stands still."""
        self.loop.call_later(delay_s, self._call, callback, args, context=self._context)

    def _call(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self.is_alive:
            callback(*args)

    def freeze(self) -> None:
        """SIGSTOP."""
        if self.is_alive:
            self.is_frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        if self.is_frozen:
            self.is_frozen = False
            parked, self.parked = self.parked, []
            self.loop.resume(parked)

    def kill(self) -> None:
        """SIGKILL."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.ended.set_result(None)
        for callback in self.on_death:
            callback()
        self.thaw()
        self._cancel(_MOST_CANCELS)

    def _cancel(self, times: int) -> None:
        for task in sorted(self.tasks, key=hash):
            task.cancel()
        if self.tasks and times:
            self.loop.call_soon(self._cancel, times - 1)
