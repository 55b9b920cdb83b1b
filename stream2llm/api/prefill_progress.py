"""How far a session has come at its prefill worker: what worker and router share."""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.api.delay import DelayReason


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Counts of tokens; all but the first three are cumulative."""

    # The last splice that these figures include.
    revision: int = 0
    # In the sequence.
    known_tokens: int = 0
    # Of those, how many have their KV in memory.
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
