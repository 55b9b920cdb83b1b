"""A background event loop that synchronous code calls into.

The caller's thread waits on a future, never polls, so Ctrl-C reaches it at
once; the coroutine it waited for is then cancelled.
"""

from __future__ import annotations

import asyncio
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
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it in the loop and returns its result; an interrupt cancels it."""
        if self._closed or threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError(
                "the client is closed"
                if self._closed
                else "a callback cannot call the client it belongs to: it would wait for itself"
            )
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
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

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
