"""Keeps what one session has received, from all routers that had it."""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass, field, replace

from stream2llm.api.errors import InternalError
from stream2llm.api.events import (
    Accepted,
    Event,
    Finished,
    OversizedDocument,
    Progress,
    TokenDelta,
)
from stream2llm.api.v1 import inference_pb2 as pb


@dataclass(slots=True)
class _ReceivedAnswer:
    token_ids: array[int] = field(default_factory=lambda: array("I"))
    # Unicode characters of its text.
    num_chars: int = 0
    is_finished: bool = False


class Received:
    """A router that takes the session over begins behind it."""

    def __init__(self, num_answers: int = 1) -> None:
        # None before the admission.
        self.accepted: Accepted | None = None
        self.progress = Progress()
        # At most one for each document that this session sent or named.
        self.oversized: list[OversizedDocument] = []
        self._num_answers = num_answers
        # Those that have begun.
        self._answers: defaultdict[int, _ReceivedAnswer] = defaultdict(_ReceivedAnswer)

    @property
    def is_finished(self) -> bool:
        """Whether all answers have ended."""
        num_finished = sum(answer.is_finished for answer in self._answers.values())
        return num_finished == self._num_answers

    @property
    def has_answer(self) -> bool:
        """Whether something of an answer has come."""
        return any(each.token_ids or each.num_chars for each in self._answers.values())

    @property
    def resumed(self) -> pb.ResumedSession:
        """Returns what another router needs to continue the answers."""
        num_begun = max(self._answers, default=0) + 1
        first, *others = (self._answers[index] for index in range(num_begun))
        return pb.ResumedSession(
            token_ids=first.token_ids,
            num_chars=first.num_chars,
            restarts=self.progress.restarts,
            others=[
                pb.ResumedAnswer(token_ids=each.token_ids, num_chars=each.num_chars)
                for each in others
            ],
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
                answer = self._answer(event.index)
                answer.token_ids.extend(event.token_ids)
                answer.num_chars += len(event.text)
            case Finished():
                answer = self._answer(event.index)
                is_first, answer.is_finished = not answer.is_finished, True
                return is_first  # a router that takes over ends it again
        return True

    def _answer(self, index: int) -> _ReceivedAnswer:
        if index >= self._num_answers:
            raise InternalError(
                f"the server sent an answer that was not asked for, of index {index}"
            )
        return self._answers[index]

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
