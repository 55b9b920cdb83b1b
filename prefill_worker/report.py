"""What a prefill scheduler counts, and the control channel that carries it out.

The scheduler runs in vLLM's EngineCore process. One request that never ends,
the control request, is the way in and out: commands go down in its
`SamplingParams.extra_args`, reports come up in `kv_transfer_params` of outputs
without tokens. Pure values; neither side's machinery is known here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

# Key of a command beside WIRE_KEY's other uses, and of a report.
CONTROL_KEY = "control"
REPORT_KEY = "report"


@dataclass(slots=True)
class SchedulerCounters:
    """Cumulative since the engine started; one writer, the scheduler.

    Tokens are prompt tokens. Recomputed ones are among the computed ones too.
    """

    computed_tokens: int = 0
    # Computed again because an eviction threw the KV away.
    recomputed_tokens: int = 0
    # KV of the session itself that served again: kept when a context event
    # replaced what follows it, or found in the prefix cache after an eviction
    # or an update that came back to earlier documents.
    reused_within_session_tokens: int = 0
    # KV that other sessions computed, found in the prefix cache.
    reused_across_sessions_tokens: int = 0
    # KV behind the common prefix of the old and the new sequence.
    invalidated_tokens: int = 0
    recompute_preemptions: int = 0
    swap_preemptions: int = 0
    # Sessions put first because they had waited for too long.
    promotions: int = 0


@dataclass(frozen=True, slots=True)
class SchedulerCommand:
    """What is asked of the scheduler. The first command opens the channel."""

    # Counts up; a report names the newest one that was carried out.
    number: int
    set_policy: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """As a plain dict, for `SamplingParams.extra_args`."""
        return {CONTROL_KEY: dataclasses.asdict(self)}

    @classmethod
    def from_wire(cls, raw: dict[str, Any]) -> SchedulerCommand | None:
        """The inverse of `to_wire`; None when `raw` is something else."""
        return cls(**raw[CONTROL_KEY]) if CONTROL_KEY in raw else None


@dataclass(frozen=True, slots=True)
class SchedulerReport:
    """State of the scheduler after a step."""

    last_command: int
    policy: str
    counters: SchedulerCounters
    # Sessions with tokens to compute, and open ones that wait for context.
    num_sessions_with_work: int = 0
    num_sessions_idle: int = 0
    # Sessions with new tokens that found no KV block in the last step.
    num_sessions_short_of_blocks: int = 0
    # Seconds phase 1 took, of each step since the last report.
    plan_s: tuple[float, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """As a plain dict, for an output's `kv_transfer_params`."""
        return {REPORT_KEY: dataclasses.asdict(self)}

    @classmethod
    def from_wire(cls, raw: dict[str, Any]) -> SchedulerReport | None:
        """The inverse of `to_wire`; None when `raw` is something else."""
        if REPORT_KEY not in raw:
            return None
        fields = dict(raw[REPORT_KEY])
        fields["counters"] = SchedulerCounters(**fields["counters"])
        fields["plan_s"] = tuple(fields["plan_s"])
        return cls(**fields)
