"""The scheduler's state of one session beside vLLM's own request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from stream2llm.api.tenant import ONE_TENANT, TenantShare

# Key of our values in SamplingParams.extra_args (front end to scheduler) and in an
# output's kv_transfer_params (scheduler to front end).
WIRE_KEY = "stream2llm"


@dataclass(frozen=True, slots=True)
class ContextEvent:
    """Makes the sequence its first `keep_tokens` tokens and the request's prompt tokens."""

    revision: int
    keep_tokens: int
    seal: bool
    # The session begins. An event without it whose session is unknown was sent
    # before the session ended.
    begins: bool = False
    # Number of leading tokens that are not expected to change: their KV may be
    # handed over before the seal. 0: none.
    stable_tokens: int = 0
    # With `begins`: whose session it is.
    tenant: TenantShare = ONE_TENANT
    # With `begins`: milliseconds from the seal in which the first token is due; 0: no deadline.
    ttft_slo_ms: int = 0
    # With `seal`: when that is, by this machine's monotonic clock.
    deadline_ms: int = 0
    # With `seal`: the whole answer is generated here, not only its first token.
    answers: bool = False

    def to_wire(self) -> dict[str, Any]:
        """As a plain dict, for `SamplingParams.extra_args`."""
        return asdict(self)

    @classmethod
    def from_wire(cls, raw: dict[str, Any]) -> ContextEvent:
        """Inverse of `to_wire`."""
        return cls(**{**raw, "tenant": TenantShare(**raw["tenant"])})


@dataclass(slots=True)
class LostBlocks:
    """Hashes of KV blocks that a session had computed or held, and lost.

    A later prefix cache hit on them reuses the session's own work, not another
    session's. Keeps the newest `capacity`; more than the cache has blocks cannot
    be found anyway.
    """

    capacity: int
    _hashes: dict[bytes, None] = field(default_factory=dict)

    def add(self, hashes: Iterable[bytes]) -> None:
        """Adds the hashes of lost blocks."""
        for block_hash in hashes:
            self._hashes.pop(block_hash, None)
            self._hashes[block_hash] = None
        while len(self._hashes) > self.capacity:
            del self._hashes[next(iter(self._hashes))]

    def count(self, hashes: Iterable[bytes]) -> int:
        """Returns how many of these were lost."""
        return sum(block_hash in self._hashes for block_hash in hashes)


@dataclass(slots=True)
class SessionState:
    """Counters of one session, written by the scheduler only. Counts are of tokens."""

    arrival: int
    last_event: int
    revision: int
    sealed: bool
    lost_blocks: LostBlocks
    # Its answer has begun here, and goes on here.
    is_answering: bool = False
    # Tokens that the worker had computed for all sessions at the last event.
    last_event_work: int = 0
    # See `RequestView`.
    opening_work: int = 0
    ttft_slo_ms: int = 0
    deadline_ms: int = 0
    # Its number among all guarded sessions while it is guarded, else 0; see starvation_guard.py.
    guard_number: int = 0
    # It is guarded until this many tokens are computed.
    promised_tokens: int = 0
    computed: int = 0
    # Found in the prefix cache, whether computed by this session or another.
    reused: int = 0
    invalidated: int = 0
    recomputed: int = 0
    # Restored from the host.
    restored: int = 0
    # Highest position that was ever computed and then lost to an eviction; computing
    # below it counts as recomputing.
    lost_until: int = 0
    uncomputed_at_seal: int = 0
    # Why it gets no KV block in its turn: "", "kv_memory", "kv_leased".
    delay: str = ""
    # Steps that computed for it since its last report, and the begin of the first one by the
    # machine's monotonic clock.
    num_steps: int = 0
    steps_began_s: float = 0.0
    # Figures of the last reported progress.
    reported_revision: int = 0
    reported_gained: int = 0
    reported_delay: str = ""

    def record_computed(self, start: int, num_tokens: int) -> int:
        """Tokens [start, start + num_tokens) were computed; returns how many of them again."""
        num_again = max(min(self.lost_until, start + num_tokens) - start, 0)
        self.computed += num_tokens
        self.recomputed += num_again
        return num_again

    def note_step(self, began_s: float) -> None:
        """A step that began at `began_s` computes for the session."""
        if not self.num_steps:
            self.steps_began_s = began_s
        self.num_steps += 1

    def is_worth_reporting(self, interval: int, *, has_work: bool) -> bool:
        """Whether the session's progress should be reported now.

        It is at every new revision, when no work is left, in between each
        `interval` tokens, and when a delay begins or ends.
        """
        gained = self._gained - self.reported_gained
        return (
            self.reported_revision != self.revision
            or self.reported_delay != self.delay
            or gained >= interval
            or (gained > 0 and not has_work)
        )

    @property
    def _gained(self) -> int:
        return self.computed + self.reused + self.restored

    def mark_reported(self) -> None:
        """Notes that the present figures have been reported."""
        self.reported_revision = self.revision
        self.reported_gained = self._gained
        self.reported_delay = self.delay
        self.num_steps = 0

    def progress(self, known: int, prefilled: int) -> dict[str, Any]:
        """Returns the figures of `PrefillProgress` for the wire, and the steps since the last."""
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
            "num_steps": self.num_steps,
            "steps_began_s": self.steps_began_s,
        }
