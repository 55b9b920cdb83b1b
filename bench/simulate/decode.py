"""A decode worker in virtual time: fetches KV over its link, then a token a step for all.

Sessions are taken up in order, each when its whole context and answer fit; KV comes
over the link one session after the other. A step reads the weights and the
KV of everybody once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from bench.simulate.steps import StepLaw


@dataclass(frozen=True, slots=True)
class Link:
    """Between prefill and decode workers, as one decode worker has it."""

    bytes_per_s: float
    # For each fetch, whatever its size.
    latency_s: float = 0.0

    def seconds(self, num_bytes: float) -> float:
        """One fetch."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """Of a worker."""

    num_tokens: int
    kv_bytes_per_token: float
    link: Link
    law: StepLaw
    max_sessions: int = 256


@dataclass(slots=True)
class Answer:
    """A session after its first token."""

    name: str
    # Its context, the first token included.
    num_tokens: int
    num_left: int
    # Of the context, what is here already.
    num_ahead: int = 0


class DecodeWorker:
    """Keeps no clock of its own: `now_s` comes with each call."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._waiting: deque[Answer] = deque()
        self._running: dict[str, Answer] = {}
        self._num_fetching = 0
        self._reserved_tokens = 0
        self._link_free_s = 0.0

    @property
    def num_sessions(self) -> int:
        """Sessions that are here or on their way."""
        return len(self._waiting) + self._num_taken

    @property
    def _num_taken(self) -> int:
        return len(self._running) + self._num_fetching

    def submit(self, answer: Answer) -> None:
        """A session has its first token."""
        self._waiting.append(answer)

    def take_up(self, now_s: float) -> list[tuple[float, Answer]]:
        """Begins fetches, as far as there is room: when each ends."""
        begun = []
        while self._waiting and self._has_room(self._waiting[0]):
            answer = self._waiting.popleft()
            self._reserved_tokens += answer.num_tokens + answer.num_left
            self._num_fetching += 1
            missing = (answer.num_tokens - 1 - answer.num_ahead) * self._settings.kv_bytes_per_token
            begins_s = max(now_s, self._link_free_s)
            self._link_free_s = begins_s + self._settings.link.seconds(max(missing, 0))
            begun.append((self._link_free_s, answer))
        return begun

    def _has_room(self, answer: Answer) -> bool:
        needed = self._reserved_tokens + answer.num_tokens + answer.num_left
        fits = needed <= self._settings.num_tokens or not self._num_taken
        return fits and self._num_taken < self._settings.max_sessions

    def fetched(self, answer: Answer) -> None:
        """Its KV is here."""
        self._num_fetching -= 1
        self._running[answer.name] = answer

    def begin_step(self) -> float | None:
        """Seconds of the next step; None: nobody is here."""
        if not self._running:
            return None
        lengths = (each.num_tokens for each in self._running.values())
        return self._settings.law.seconds((length - 1, length) for length in lengths)

    def names(self) -> tuple[str, ...]:
        """Who gets a token from the step that begins now."""
        return tuple(self._running)

    def end_step(self, names: tuple[str, ...]) -> list[str]:
        """These got a token; who is done."""
        done = []
        for name in names:
            answer = self._running[name]
            answer.num_tokens += 1
            answer.num_left -= 1
            if answer.num_left <= 0:
                del self._running[name]
                self._reserved_tokens -= answer.num_tokens
                done.append(name)
        return done
