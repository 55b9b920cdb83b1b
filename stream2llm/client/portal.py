"""A background event loop for synchronous code.

The caller's thread waits on a future and does not poll, so Ctrl-C reaches it at once;
the coroutine is then cancelled.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """One daemon thread that runs one event loop until `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_quiet_poller)
        self._thread = threading.Thread(target=self._run, name="stream2llm-client", daemon=True)
        self._closed = False
        self._pid = os.getpid()
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop and returns its result; an interrupt cancels it."""
        unusable = self._unusable()
        if unusable:
            coroutine.close()
            raise RuntimeError(unusable)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # does nothing when the coroutine itself raised
            raise

    def close(self) -> None:
        """Cancels what still runs and ends the thread."""
        if not self._closed:
            self._closed = True
            if os.getpid() != self._pid:
                return  # in a fork: thread and loop belong to the parent
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _unusable(self) -> str | None:
        """Returns why no call can be made from here."""
        if self._closed:
            return "the client is closed"
        if os.getpid() != self._pid:
            return (
                "the client belongs to the process that made it, of which this one is a fork: "
                'start processes with multiprocessing.get_context("spawn")'
            )
        if threading.current_thread() is self._thread:
            return "a callback cannot call the client it belongs to: it would wait for itself"
        return None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_all())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()


async def _cancel_all() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def _quiet_poller(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Drops one harmless report: grpc.aio has one wake-up pipe for all loops of a
    process, and a loop that finds it already drained gets BlockingIOError."""
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)
