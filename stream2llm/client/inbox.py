"""The events of a session for those who read them.

They go into two bounded buffers, before and after the seal. A router that takes the
session over begins behind what has come, so a reader sees one session: `Accepted` once,
no token twice, and that the session was lost only by `Progress`.
"""

from __future__ import annotations

from collections.abc import Callable

from stream2llm.api.errors import EventOrderError
from stream2llm.api.events import Accepted, Event, Progress
from stream2llm.client.buffer import EventBuffer
from stream2llm.client.credit import CreditGate
from stream2llm.client.received import Received

OnEvent = Callable[[Event], None]


class Inbox(Received):
    """One writer; `end` is its last call."""

    def __init__(self, on_event: OnEvent | None, num_answers: int = 1) -> None:
        super().__init__(num_answers)
        self.credit = CreditGate()
        self.before_seal = EventBuffer()
        self.after_seal = EventBuffer()
        self._on_event = on_event

    async def take(self, event: Event) -> None:
        """Takes the next event; waits while its reader is far behind."""
        if isinstance(event, Accepted | Progress):
            self.credit.grant(event.credit_tokens)
        if self.note(event):
            await self._show(event)

    async def router_lost(self) -> None:
        """The router is lost: the next one begins with nothing."""
        self.credit.grant(0)
        await self._show(self.lose_router())

    def seal(self) -> None:
        """What comes from now on belongs to the answer."""
        self.before_seal.close()

    def end(self, failure: BaseException | None) -> None:
        """Nothing comes any more."""
        self.credit.fail(failure or EventOrderError("the session has ended"))
        self.before_seal.close(failure)
        self.after_seal.close(failure)

    async def _show(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
        is_sealed = self.before_seal.closed
        await (self.after_seal if is_sealed else self.before_seal).put(event)
