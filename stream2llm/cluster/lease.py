"""The lease of an attached `up`: while its process lives, it renews it; else the cluster ends.

Routers and workers are detached actors, so that they outlive a controller that has died. The
driver that started them may die too, by SIGKILL or with its machine, and no actor may stay for
ever because of that.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

# Renewals in the time of one lease.
RENEWALS = 6


class Lease:
    """The controller's side."""

    def __init__(self, lease_s: float, now_s: Callable[[], float]) -> None:
        self._lease_s = lease_s
        self._now_s = now_s
        self._until_s = now_s() + lease_s

    def renew(self) -> None:
        """The driver lives."""
        self._until_s = self._now_s() + self._lease_s

    async def lapsed(self) -> None:
        """Returns when the driver has not renewed it in time."""
        while (left_s := self._until_s - self._now_s()) > 0:  # noqa: ASYNC110 - a moving instant
            await asyncio.sleep(left_s)


class LeaseKeeper:
    """The driver's side: a thread that renews, because the driver waits in Ray's calls."""

    def __init__(self, lease_s: float, renew: Callable[[], object]) -> None:
        """`renew` must neither block nor raise."""
        self._interval_s = lease_s / RENEWALS
        self._renew = renew
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream2llm-lease", daemon=True)

    def start(self) -> None:
        """Begins to renew."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Ends the thread; may be called again, and before `start`."""
        self._ended.set()
        if self.is_running:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._renew()
