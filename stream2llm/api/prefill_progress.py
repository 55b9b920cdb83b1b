"""How far a session has come at its prefill worker: what worker and router share."""

from __future__ import annotations

from dataclasses import dataclass, fields

from stream2llm.api.events import DelayReason, Usage


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Counts of tokens; all but the first three are cumulative."""

    # The last splice that these figures include.
    revision: int = 0
    # In the sequence.
    known_tokens: int = 0
    # How many of the known ones have their KV in memory.
    prefilled_tokens: int = 0
    computed_tokens: int = 0
    # Found in the prefix cache.
    reused_tokens: int = 0
    # Prefilled, then thrown away by a splice.
    invalidated_tokens: int = 0
    # Computed again after a preemption; among the computed ones too.
    recomputed_tokens: int = 0
    # Why it gets no KV memory now, if that is so.
    delay: DelayReason | None = None

    def used(self) -> dict[str, int]:
        """The counts that go on to the client, by their names in Progress and Usage."""
        return {name: getattr(self, name) for name in _USED}


_USED = [each.name for each in fields(PrefillProgress) if each.name in Usage.__dataclass_fields__]
