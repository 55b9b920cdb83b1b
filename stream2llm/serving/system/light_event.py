"""An event of a session, of which a router has ten thousand."""

from __future__ import annotations

import asyncio


class LightEvent:
    """`asyncio.Event` without the 700 bytes of queue that it has before anything waits."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[asyncio.Future[None]] = []

    def is_set(self) -> bool:
        """Whether `wait` returns at once."""
        return self._is_set

    def set(self) -> None:
        """Wakes all that wait, even if it is cleared at once."""
        self._is_set = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():  # its task was not cancelled
                waiter.set_result(None)

    def clear(self) -> None:
        """From now on `wait` waits for the next `set`."""
        self._is_set = False

    async def wait(self) -> None:
        """Returns when it is set."""
        if self._is_set:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
