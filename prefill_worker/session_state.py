"""What the scheduler remembers of one session beside vLLM's own request."""

from __future__ import annotations

from dataclasses import dataclass
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

    def to_wire(self) -> dict[str, Any]:
        """As a plain dict, for `SamplingParams.extra_args`."""
        return {
            "revision": self.revision,
            "keep_tokens": self.keep_tokens,
            "seal": self.seal,
            "begins": self.begins,
        }

    @classmethod
    def from_wire(cls, raw: dict[str, Any]) -> ContextEvent:
        """The inverse of `to_wire`."""
        return cls(raw["revision"], raw["keep_tokens"], raw["seal"], raw["begins"])


@dataclass(slots=True)
class SessionState:
    """Counters of one session; one writer, the scheduler. Counts are of tokens."""

    arrival: int
    last_event: int
    revision: int
    sealed: bool
    computed: int = 0
    reused: int = 0
    invalidated: int = 0
    recomputed: int = 0
    # Highest position that was ever computed and then lost to an eviction;
    # computing below it again counts as recomputed.
    lost_until: int = 0
    uncomputed_at_seal: int = 0
    # The sequence is new to the prefix cache: it may know more than is computed.
    lookup_due: bool = True
    # Figures of the last progress that was told.
    told_revision: int = 0
    told_gained: int = 0

    def record_computed(self, start: int, num_tokens: int) -> None:
        """Tokens [start, start + num_tokens) were computed."""
        self.computed += num_tokens
        self.recomputed += max(min(self.lost_until, start + num_tokens) - start, 0)

    def is_worth_telling(self, interval: int, *, has_work: bool) -> bool:
        """Whether the client side should hear of this session's progress now.

        At every new revision, whenever nothing is left to do, and in between
        each `interval` tokens.
        """
        gained = self.computed + self.reused - self.told_gained
        return (
            self.told_revision != self.revision
            or gained >= interval
            or (gained > 0 and not has_work)
        )

    def mark_told(self) -> None:
        """The present figures have been told."""
        self.told_revision = self.revision
        self.told_gained = self.computed + self.reused

    def progress(self, known: int, prefilled: int) -> dict[str, int]:
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
        }
