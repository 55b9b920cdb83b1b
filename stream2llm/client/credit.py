"""Whether the client may send: the credit that the server last granted.

Credit counts tokens, and only the server can count the tokens of a text, so the rule is
simple: wait while the last known credit is 0, send otherwise. A failed session wakes all
waiting calls.
"""

from __future__ import annotations

import asyncio


class CreditGate:
    """Open while there is credit; open for good, with an error, after a failure."""

    def __init__(self) -> None:
        self._passable = asyncio.Event()
        self._error: BaseException | None = None

    def grant(self, credit_tokens: int) -> None:
        """Replaces the credit with the server's newest."""
        if credit_tokens > 0:
            self._passable.set()
        elif self._error is None:
            self._passable.clear()

    def fail(self, error: BaseException) -> None:
        """Ends sending; `wait` raises the first such error."""
        if self._error is None:
            self._error = error
        self._passable.set()

    async def wait(self) -> None:
        """Returns when there is credit, raises when the session has failed."""
        await self._passable.wait()
        if self._error is not None:
            raise self._error
