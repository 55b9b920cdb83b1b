"""What a session has received, from all routers that had it.

Events go into two bounded buffers, before and after the seal. A router that takes the
session over begins behind what has come, so a reader sees one session: `Accepted` once,
no token twice, and that the session was lost only by `Progress`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace

from stream2llm.api.errors import EventOrderError
from stream2llm.api.events import (
    Accepted,
    Event,
    Finished,
    OversizedDocument,
    Progress,
    TokenDelta,
)
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.buffer import EventBuffer
from stream2llm.client.credit import CreditGate

OnEvent = Callable[[Event], None]


class Inbox:
    """One writer; `end` is its last call."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self.credit = CreditGate()
        self.before_seal = EventBuffer()
        self.after_seal = EventBuffer()
        # None before the admission.
        self.accepted: Accepted | None = None
        self.progress = Progress()
        # At most one for each document that this session sent or named.
        self.oversized: list[OversizedDocument] = []
        self.is_finished = False
        self._on_event = on_event
        self._token_ids = array("I")
        self._num_chars = 0

    @property
    def resumed(self) -> pb.ResumedSession:
        """What another router has to know to go on."""
        return pb.ResumedSession(
            token_ids=self._token_ids,
            num_chars=self._num_chars,
            restarts=self.progress.restarts,
        )

    async def take(self, event: Event) -> None:
        """Takes the next event; waits while its reader is far behind."""
        if self._note(event):
            await self._show(event)

    async def router_lost(self) -> None:
        """The router is lost: the next one begins with nothing."""
        self.credit.grant(0)
        self.progress = replace(
            self.progress,
            prefilled_tokens=0,
            credit_tokens=0,
            delay=None,
            restarts=self.progress.restarts + 1,
        )
        await self._show(self.progress)

    def seal(self) -> None:
        """What comes from now on belongs to the answer."""
        self.before_seal.close()

    def end(self, failure: BaseException | None) -> None:
        """Nothing comes any more."""
        self.credit.fail(failure or EventOrderError("the session has ended"))
        self.before_seal.close(failure)
        self.after_seal.close(failure)

    def _note(self, event: Event) -> bool:
        """Takes an event down; returns whether it is news for the reader."""
        match event:
            case Accepted():
                self.credit.grant(event.credit_tokens)
                is_first, self.accepted = self.accepted is None, self.accepted or event
                return is_first
            case Progress():
                self.progress = event
                self.credit.grant(event.credit_tokens)
            case OversizedDocument():
                if self.progress.restarts and event in self.oversized:
                    return False
                self.oversized.append(event)
            case TokenDelta():
                self._token_ids.extend(event.token_ids)
                self._num_chars += len(event.text)
            case Finished():
                self.is_finished = True
        return True

    async def _show(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
        is_sealed = self.before_seal.closed
        await (self.after_seal if is_sealed else self.before_seal).put(event)
