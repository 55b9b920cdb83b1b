"""The tries of one session at routers: which is next, for how long, and after what pause.

`recovery.py` decides; this knows the time and carries it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stream2llm.api.errors import Stream2LLMError, UnavailableError
from stream2llm.client.recovery import Again, GiveUp, Recovery, SessionRecovery, is_loss
from stream2llm.client.routers import Routers
from stream2llm.client.rpc import RpcFailedError
from stream2llm.client.status import out_of_time

# How long a router may take to answer an RPC where there is another one to ask, or this one to
# ask again.
ANSWER_LIMIT_S = 10.0


class Tries:
    """The tries of one session, whose time begins with this object."""

    def __init__(self, routers: Routers, limits: SessionRecovery, timeout_s: float | None) -> None:
        """`timeout_s` is for the whole session."""
        self._routers = routers
        self._recovery = Recovery(limits, len(routers))
        self._timeout_s = timeout_s
        self._deadline_s = None if timeout_s is None else _now_s() + timeout_s

    def next_router(self) -> int:
        """Returns the number of the router to ask."""
        return self._routers.next(_now_s())

    def left_s(self, waited_for: str) -> float | None:
        """Seconds that the session has; raises when they are over, and says what was missing."""
        if self._deadline_s is None or self._timeout_s is None:
            return None
        left_s = self._deadline_s - _now_s()
        if left_s <= 0:
            raise out_of_time(self._timeout_s, waited_for)
        return left_s

    @asynccontextmanager
    async def answer(self, *, is_first: bool) -> AsyncIterator[None]:
        """Limits the time until a router has answered the RPC; raises RpcFailedError.

        A router that has answered may take as long as it lets sessions wait for a worker. The
        only one has all the time that it wants, when it is asked the first time.
        """
        is_only_chance = is_first and len(self._routers) == 1
        try:
            async with asyncio.timeout(None if is_only_chance else ANSWER_LIMIT_S):
                yield
        except TimeoutError:
            message = f"the router did not answer within {ANSWER_LIMIT_S:g} s"
            raise RpcFailedError(UnavailableError(message)) from None

    def admitted(self, router: int) -> None:
        """The router has taken the session."""
        self._routers.served(router)

    def failed(
        self, router: int, error: Stream2LLMError, *, was_admitted: bool, is_kept: bool
    ) -> Again:
        """Returns how to go on; raises the error that is final."""
        now_s = _now_s()
        self._recovery.num_routers = len(self._routers)
        if is_loss(error):
            self._routers.failed(router, now_s)
        if was_admitted:
            verdict = self._recovery.lost(error, now_s, is_kept=is_kept)
        else:
            verdict = self._recovery.refused(error, now_s)
        if isinstance(verdict, GiveUp):
            raise verdict.error from None
        return verdict

    async def pause(self, again: Again, waited_for: str) -> None:
        """Returns when the next router may be asked, or the time is over."""
        left_s = self.left_s(waited_for)
        await asyncio.sleep(again.pause_s if left_s is None else min(again.pause_s, left_s))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
