"""Waiting for another process, where it offers no event to wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    read: Callable[[], Awaitable[T]], is_right: Callable[[T], bool], timeout_s: float = 30.0
) -> T:
    """Reads until `is_right` says so; fails with the last value after `timeout_s`.

    The pause only spares the processor; the result does not depend on it.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = await read()
        if is_right(value):
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {timeout_s} s"
        await asyncio.sleep(0.05)
