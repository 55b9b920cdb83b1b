"""What the scheduler remembers of one session beside vLLM's own request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

# Key of our part in SamplingParams.extra_args (frontend to scheduler) and in
# an output's kv_transfer_params (scheduler to frontend).
WIRE_KEY = "stream2llm"


@dataclass(frozen=True, slots=True)
class ContextEvent:
    """The sequence becomes its first `keep_tokens` tokens and the request's prompt tokens."""

    revision: int
    keep_tokens: int
    seal: bool
    # The session begins. An event that says otherwise and whose session is not
    # known is one that was on its way when the session ended.
    begins: bool = False
    # How many tokens from the start are not expected to change: their KV may be
    # handed over ahead of the seal. 0: none.
    stable_tokens: int = 0

    def to_wire(self) -> dict[str, Any]:
        """As a plain dict, for `SamplingParams.extra_args`."""
        return asdict(self)

    @classmethod
    def from_wire(cls, raw: dict[str, Any]) -> ContextEvent:
        """The inverse of `to_wire`."""
        return cls(**raw)


@dataclass(slots=True)
class LostBlocks:
    """Hashes of KV blocks that a session had computed or held, and lost.

    Found again in the prefix cache, they are reuse of its own work, not of
    another session's. Keeps the newest `capacity`; older ones than the cache
    has blocks cannot be found anyway.
    """

    capacity: int
    _hashes: dict[bytes, None] = field(default_factory=dict)

    def add(self, hashes: Iterable[bytes]) -> None:
        """These are lost."""
        for block_hash in hashes:
            self._hashes.pop(block_hash, None)
            self._hashes[block_hash] = None
        while len(self._hashes) > self.capacity:
            del self._hashes[next(iter(self._hashes))]

    def count(self, hashes: Iterable[bytes]) -> int:
        """How many of these were lost."""
        return sum(block_hash in self._hashes for block_hash in hashes)


@dataclass(slots=True)
class SessionState:
    """Counters of one session; one writer, the scheduler. Counts are of tokens."""

    arrival: int
    last_event: int
    revision: int
    sealed: bool
    lost_blocks: LostBlocks
    # Tokens the worker had computed, of all sessions, at the last event.
    last_event_work: int = 0
    # The number of its promotion while that lasts, else 0; see the starvation guard.py.
    promotion: int = 0
    # The promotion lasts until so many tokens are computed.
    promised_tokens: int = 0
    computed: int = 0
    # Found in the prefix cache, whoever computed it.
    reused: int = 0
    invalidated: int = 0
    recomputed: int = 0
    # Came back from the host.
    restored: int = 0
    # Highest position that was ever computed and then lost to an eviction;
    # computing below it again counts as recomputed.
    lost_until: int = 0
    uncomputed_at_seal: int = 0
    # Why it gets no KV block, though it is its turn: "", "kv_memory", "kv_leased".
    delay: str = ""
    # Figures of the last progress that was told.
    told_revision: int = 0
    told_gained: int = 0
    told_delay: str = ""

    def record_computed(self, start: int, num_tokens: int) -> int:
        """Tokens [start, start + num_tokens) were computed; how many of them again."""
        num_again = max(min(self.lost_until, start + num_tokens) - start, 0)
        self.computed += num_tokens
        self.recomputed += num_again
        return num_again

    def is_worth_reporting(self, interval: int, *, has_work: bool) -> bool:
        """Whether the client side should hear of this session's progress now.

        At every new revision, whenever nothing is left to do, in between each
        `interval` tokens, and when a delay begins or ends.
        """
        gained = self._gained - self.told_gained
        return (
            self.told_revision != self.revision
            or self.told_delay != self.delay
            or gained >= interval
            or (gained > 0 and not has_work)
        )

    @property
    def _gained(self) -> int:
        return self.computed + self.reused + self.restored

    def mark_told(self) -> None:
        """The present figures have been told."""
        self.told_revision = self.revision
        self.told_gained = self._gained
        self.told_delay = self.delay

    def progress(self, known: int, prefilled: int) -> dict[str, Any]:
        """The figures of `PrefillProgress`, for the wire."""
        return {
            "revision": self.revision,
            "known_tokens": known,
            "prefilled_tokens": prefilled,
            "computed_tokens": self.computed,
            "reused_tokens": self.reused,
            "invalidated_tokens": self.invalidated,
            "recomputed_tokens": self.recomputed,
            "uncomputed_at_seal_tokens": self.uncomputed_at_seal,
            "delay": self.delay,
        }
