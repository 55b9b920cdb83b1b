"""Groups of tasks, and the cancellation of the task that owns one.

`asyncio.TaskGroup` of Python 3.11 and 3.12 loses a cancellation that comes as one of its tasks
fails: it raises the failure alone (cpython issue 116720), and code that goes on behind a failure
would go on for a caller that has left. And a task that fails while the group waits for its end
leaves `Task.cancelling` of the owner at 1, as if it had been cancelled. `TaskGroup` does neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context
from types import TracebackType
from typing import Any, TypeVar

_T = TypeVar("_T")


class TaskGroup(asyncio.TaskGroup):
    """A group that raises CancelledError if its owner was cancelled, whatever else has failed."""

    def __init__(self) -> None:
        super().__init__()
        self._children: set[asyncio.Task[Any]] = set()

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[_T]:
        """As that of asyncio."""
        task = super().create_task(coro, name=name, context=context)
        self._children.add(task)
        task.add_done_callback(self._children.discard)
        return task

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            # Still in the group's body, where a task's failure does not count as a cancellation.
            try:
                while self._children:
                    await asyncio.wait(self._children)
            except asyncio.CancelledError as cancelled:
                kind, error, trace = type(cancelled), cancelled, cancelled.__traceback__
        try:
            await super().__aexit__(kind, error, trace)
        except BaseExceptionGroup as raised:
            if is_cancelled():
                raise asyncio.CancelledError from raised
            raise


def is_cancelled() -> bool:
    """Returns whether the present task was cancelled, and must not go on."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def single_error() -> Iterator[None]:
    """Raises the first error of a group whose tasks fail for one cause."""
    try:
        yield
    except BaseExceptionGroup as raised:
        raise raised.exceptions[0] from None
