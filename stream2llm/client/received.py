"""Keeps what one session has received, from all routers that had it."""

from __future__ import annotations

from array import array
from dataclasses import replace

from stream2llm.api.events import (
    Accepted,
    Event,
    Finished,
    OversizedDocument,
    Progress,
    TokenDelta,
)
from stream2llm.api.v1 import inference_pb2 as pb


class Received:
    """A router that takes the session over begins behind it."""

    def __init__(self) -> None:
        # None before the admission.
        self.accepted: Accepted | None = None
        self.progress = Progress()
        # At most one for each document that this session sent or named.
        self.oversized: list[OversizedDocument] = []
        self.is_finished = False
        self._token_ids = array("I")
        self._num_chars = 0

    @property
    def has_answer(self) -> bool:
        """Whether something of the answer has come."""
        return bool(self._token_ids or self._num_chars)

    @property
    def resumed(self) -> pb.ResumedSession:
        """Returns what another router needs to continue the answer."""
        return pb.ResumedSession(
            token_ids=self._token_ids,
            num_chars=self._num_chars,
            restarts=self.progress.restarts,
        )

    def note(self, event: Event) -> bool:
        """Takes an event down; returns whether it is news for the reader."""
        match event:
            case Accepted():
                is_first, self.accepted = self.accepted is None, self.accepted or event
                return is_first
            case Progress():
                self.progress = event
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

    def lose_router(self) -> Progress:
        """The next router begins with nothing; returns the progress that says so."""
        self.progress = replace(
            self.progress,
            prefilled_tokens=0,
            credit_tokens=0,
            delay=None,
            restarts=self.progress.restarts + 1,
        )
        return self.progress
