"""A decode worker in virtual time: fetches KV over its link, then a token a step for all.

Sessions are taken up in production's order (decode_worker/answer_order.py), each when its whole context and answer fit; KV comes
over the link one session after the other. A step reads the weights and the
KV of all running answers once.

KV that was prefetched before the seal belongs to no answer until its own is taken up:
it makes room for running answers, the oldest first, and a fetch never makes room
for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from decode_worker.answer_order import AnswerOrder, AnswerTag
from stream2llm.api.tenant import ONE_TENANT, TenantShare
from stream2llm.simulator.steps import StepLaw


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
    """Settings of a decode worker."""

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
    tenant: TenantShare = ONE_TENANT


@dataclass(slots=True)
class HandoverCounters:
    """Tokens whose KV crossed; wasted are those prefetched that no answer used."""

    prefetched_tokens: int = 0
    used_tokens: int = 0
    after_seal_tokens: int = 0


class DecodeWorker:
    """Keeps no clock of its own: `now_s` comes with each call."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._order = AnswerOrder()
        # Answers that wait, the one to take up first at the front.
        self._waiting: list[tuple[int, int, Answer, AnswerTag]] = []
        self._num_submitted = 0
        self._tags: dict[str, AnswerTag] = {}
        self._running: dict[str, Answer] = {}
        self._num_fetching = 0
        self._reserved_tokens = 0
        self._link_free_s = 0.0
        # Sessions that will hand over to this worker.
        self._expected: set[str] = set()
        # Prefetched tokens of each session: here, and on their way.
        self._prefetch: dict[str, int] = {}
        self._coming: dict[str, int] = {}
        self.counters = HandoverCounters()

    @property
    def num_sessions(self) -> int:
        """Sessions that are here, on their way, or will come."""
        return len(self._waiting) + self._num_taken + len(self._expected)

    # -- ahead of the seal -------------------------------------------------------------

    def follow(self, name: str) -> None:
        """A session will hand over to this worker."""
        self._expected.add(name)

    def leave(self, name: str) -> None:
        """It has ended, or is about to be submitted."""
        self._expected.discard(name)

    def prefetch_kv(self, now_s: float, name: str, num_tokens: int) -> float | None:
        """Fetches what is missing of the first `num_tokens`: when that ends; None: no room."""
        num_missing = num_tokens - self._prefetch.get(name, 0)
        num_held = self._reserved_tokens + self._num_prefetched + num_missing
        if self._waiting or num_held > self._settings.num_tokens:
            return None
        self._coming[name] = num_tokens
        self.counters.prefetched_tokens += num_missing
        return self._read(now_s, num_missing)

    @property
    def _num_prefetched(self) -> int:
        coming = (each - self._prefetch.get(name, 0) for name, each in self._coming.items())
        return sum(self._prefetch.values()) + sum(coming)

    def prefetched(self, name: str) -> None:
        """That fetch has ended; nothing is kept of one that was cut, or that an answer has taken."""
        if (num_tokens := self._coming.pop(name, None)) is not None:
            self._prefetch[name] = num_tokens

    def cut(self, name: str, num_tokens: int) -> None:
        """The session's sequence has changed behind so many tokens."""
        if name in self._prefetch:
            self._prefetch[name] = min(self._prefetch[name], num_tokens)
        if self._coming.get(name, 0) > num_tokens:
            del self._coming[name]

    def _take_prefetched(self, name: str) -> int:
        """Tokens of the session that need not cross again; they are the answer's from now on."""
        num_here = self._prefetch.pop(name, 0)
        num_prefetched = max(num_here, self._coming.pop(name, 0))
        self.counters.used_tokens += num_prefetched
        return num_prefetched

    def _make_room(self) -> None:
        """Running answers go before what was prefetched."""
        while (
            self._prefetch
            and self._reserved_tokens + self._num_prefetched > self._settings.num_tokens
        ):
            del self._prefetch[next(iter(self._prefetch))]

    def _read(self, now_s: float, num_tokens: int) -> float:
        """One after the other; when this one ends."""
        num_bytes = max(num_tokens, 0) * self._settings.kv_bytes_per_token
        begins_s = max(now_s, self._link_free_s)
        self._link_free_s = begins_s + self._settings.link.seconds(num_bytes)
        return self._link_free_s

    # -- answers -----------------------------------------------------------------------

    @property
    def _num_taken(self) -> int:
        return len(self._running) + self._num_fetching

    def submit(self, answer: Answer) -> None:
        """A session has its first token."""
        self._num_submitted += 1
        tag = self._order.submitted(answer.tenant, answer.num_tokens + answer.num_left)
        heappush(self._waiting, (tag.rank, self._num_submitted, answer, tag))

    def take_up(self, now_s: float) -> list[tuple[float, Answer]]:
        """Begins fetches, as far as there is room: when each ends."""
        begun = []
        while self._waiting and self._has_room(self._waiting[0][2]):
            *_, answer, tag = heappop(self._waiting)
            self._order.began(tag)
            self._tags[answer.name] = tag
            self._reserved_tokens += answer.num_tokens + answer.num_left
            self._num_fetching += 1
            num_missing = answer.num_tokens - 1 - self._take_prefetched(answer.name)
            self.counters.after_seal_tokens += num_missing
            self._make_room()
            begun.append((self._read(now_s, num_missing), answer))
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
        """Seconds of the next step; None: there is no answer to decode."""
        if not self._running:
            return None
        lengths = (each.num_tokens for each in self._running.values())
        return self._settings.law.seconds((length - 1, length) for length in lengths)

    def names(self) -> tuple[str, ...]:
        """The answers that get a token from the step that begins now."""
        return tuple(self._running)

    def end_step(self, names: tuple[str, ...]) -> list[str]:
        """These got a token; returns the answers that are complete."""
        done = []
        for name in names:
            answer = self._running[name]
            answer.num_tokens += 1
            answer.num_left -= 1
            if answer.num_left <= 0:
                del self._running[name]
                self._reserved_tokens -= answer.num_tokens
                self._order.ended(self._tags.pop(name), answer.num_tokens)
                done.append(name)
        return done
