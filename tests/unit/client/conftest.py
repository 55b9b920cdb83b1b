"""A fake router in the test's own loop, and one in a thread for synchronous tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from stream2llm.client import AsyncClient
from tests.fake_router import FakeRouter

_HANGS_AFTER_S = 60.0


@pytest.fixture
async def no_test_hangs() -> AsyncIterator[None]:
    """The test runs in another task than this fixture, so a timeout around it would not end it."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(_HANGS_AFTER_S, _cancel_all, loop)
    yield
    timer.cancel()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    async with FakeRouter() as fake:
        yield fake


@pytest.fixture
async def client(router: FakeRouter) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(router.address) as made:
        yield made


class ThreadedRouter:
    """A FakeRouter in an event loop of its own."""

    def __init__(self) -> None:
        self.fake = FakeRouter()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> ThreadedRouter:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def next_end(self, timeout_s: float = 10) -> str:
        """How the next session ended."""
        ended = asyncio.run_coroutine_threadsafe(self.fake.ends.get(), self._loop)
        return ended.result(timeout_s)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        # One grpc.aio wake-up pipe serves all loops of a process: see client/sync.py.
        self._loop.set_exception_handler(lambda loop, context: None)
        async with self.fake:
            self._started.set()
            await self._stop.wait()


@pytest.fixture
def threaded_router() -> Iterator[ThreadedRouter]:
    with ThreadedRouter() as made:
        yield made
