"""Cancellation of the present task, where errors of other tasks come at the same moment.

A group of tasks (`asyncio.TaskGroup`) whose own task is cancelled while one of its tasks fails
raises the failure, and the cancellation is lost: code that goes on behind the failure would go on
for a caller that has left (Python 3.11 to 3.12; cpython issue 116720).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


def is_cancelled() -> bool:
    """Whether the present task was cancelled, and may not go on."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def single_error() -> Iterator[None]:
    """Raises one error for a group: CancelledError if the present task was cancelled, else the first.

    Put it around a group of tasks that fail for one cause.
    """
    try:
        yield
    except BaseExceptionGroup as raised:
        if is_cancelled():
            raise asyncio.CancelledError from raised
        raise raised.exceptions[0] from None
