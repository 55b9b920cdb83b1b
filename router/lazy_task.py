"""Work of a session that only some sessions need: no task before that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from stream2llm.api.tasks import TaskGroup


class LazyTask:
    """Work in a task of the group, which begins when it is asked for; once at a time."""

    def __init__(
        self, group: TaskGroup, work: Callable[[], Coroutine[object, object, None]]
    ) -> None:
        self._group = group
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begins the work, unless it is under way."""
        if self._task is None or self._task.done():
            self._task = self._group.create_task(self._work())

    def cancel(self) -> None:
        """Ends the work, if it is under way."""
        if self._task is not None:
            self._task.cancel()
