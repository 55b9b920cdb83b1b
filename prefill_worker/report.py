"""A prefill scheduler's counters, and the messages of its control channel.

The scheduler runs in vLLM's EngineCore process. One request that never ends, the
control request, is the channel: commands travel in its `SamplingParams.extra_args`,
reports in `kv_transfer_params` of outputs without tokens. Pure values; both
sides' mechanics are elsewhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import msgspec

from cost_profiles.decision import Reason
from prefill_worker.types import SwapChoice

# Key of a command beside other values under WIRE_KEY, and of a report.
CONTROL_KEY = "control"
REPORT_KEY = "report"


@dataclass(slots=True)
class SchedulerCounters:
    """Cumulative counts since the engine started, written by the scheduler only.

    Tokens are prompt tokens. Recomputed tokens are counted as computed, too.
    """

    computed_tokens: int = 0
    # Computed again because an eviction discarded the KV.
    recomputed_tokens: int = 0
    # The session's own KV that was used again: kept when a context event replaced what
    # follows it, or found in the prefix cache after an eviction or an update that
    # returned to earlier documents.
    reused_within_session_tokens: int = 0
    # KV that other sessions computed, found in the prefix cache.
    reused_across_sessions_tokens: int = 0
    # KV behind the common prefix of the old and the new sequence.
    invalidated_tokens: int = 0
    # KV restored from the host instead of being computed again.
    restored_tokens: int = 0
    # Victims by the fate of their KV: at least a part is swapped out, or all is
    # recomputed. Below, the same victims by reason.
    recompute_preemptions: int = 0
    swap_preemptions: int = 0
    recomputed_by_mode: int = 0
    recomputed_as_cheaper: int = 0
    recomputed_as_cached: int = 0
    recomputed_without_full_block: int = 0
    recomputed_as_pool_full: int = 0
    swapped_by_mode: int = 0
    swapped_as_cheaper: int = 0
    swapped_as_trial: int = 0
    swapped_out_blocks: int = 0
    swapped_in_blocks: int = 0
    # Seconds of copying on the slowest rank.
    swap_out_s: float = 0.0
    swap_in_s: float = 0.0
    # Failed jobs; their tokens are computed again.
    swap_failures: int = 0
    # Sessions that the starvation guard has put before others.
    guarded_sessions: int = 0

    def count_preemption(self, choice: SwapChoice) -> None:
        """Counts a session that lost KV, by what was chosen for it."""
        names = _SWAPPED if choice.num_blocks else _RECOMPUTED
        total, reason = names[0], names[1][choice.reason]
        setattr(self, total, getattr(self, total) + 1)
        setattr(self, reason, getattr(self, reason) + 1)


_RECOMPUTED = (
    "recompute_preemptions",
    {
        Reason.MODE: "recomputed_by_mode",
        Reason.CHEAPER: "recomputed_as_cheaper",
        Reason.CACHED: "recomputed_as_cached",
        Reason.NO_BLOCKS: "recomputed_without_full_block",
        Reason.POOL_FULL: "recomputed_as_pool_full",
    },
)
_SWAPPED = (
    "swap_preemptions",
    {
        Reason.MODE: "swapped_by_mode",
        Reason.CHEAPER: "swapped_as_cheaper",
        Reason.TRIAL: "swapped_as_trial",
    },
)
# (action, reason), as labels of a metric, to the counter.
DECISIONS = {
    (action, reason.value): counter
    for action, (_, counters) in {"recompute": _RECOMPUTED, "swap": _SWAPPED}.items()
    for reason, counter in counters.items()
}


@dataclass(frozen=True, slots=True)
class SwapState:
    """The present CPU KV offload pool and calibrated costs."""

    num_slots: int = 0
    num_slots_used: int = 0
    # Over all layers and ranks.
    bytes_per_block: int = 0
    # Actual seconds per predicted second.
    recompute_factor: float = 1.0
    swap_out_factor: float = 1.0
    swap_in_factor: float = 1.0
    # What the costs started from; see `cost_profiles.correction.Origin`.
    profile: str = ""
    profile_source: str = ""


@dataclass(frozen=True, slots=True)
class SchedulerCommand:
    """A command to the scheduler. The first command opens the channel."""

    # Increases; a report names the newest command that was carried out.
    number: int
    set_policy: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """Returns a plain dict for `SamplingParams.extra_args`."""
        return {CONTROL_KEY: dataclasses.asdict(self)}

    @classmethod
    def from_wire(cls, raw: dict[str, Any]) -> SchedulerCommand | None:
        """Inverse of `to_wire`; None when `raw` is something else."""
        return cls(**raw[CONTROL_KEY]) if CONTROL_KEY in raw else None


@dataclass(frozen=True, slots=True)
class SchedulerReport:
    """The scheduler's state after a step."""

    last_command: int
    policy: str
    counters: SchedulerCounters
    # Sessions with tokens to compute, and open ones that wait for context.
    num_sessions_with_work: int = 0
    num_sessions_idle: int = 0
    # Sessions with new tokens that found no KV block in the last step.
    num_sessions_short_of_blocks: int = 0
    swap: SwapState = SwapState()
    # What the policy raised that it was set to before; "" while the scheduler follows what it
    # was set to.
    policy_failure: str = ""
    # Duration of phase 1 in seconds, for each step since the last report.
    plan_s: tuple[float, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """Returns a plain dict for an output's `kv_transfer_params`."""
        return {REPORT_KEY: dataclasses.asdict(self)}

    @classmethod
    def from_wire(cls, raw: dict[str, Any]) -> SchedulerReport | None:
        """Inverse of `to_wire`; None when `raw` is something else."""
        return msgspec.convert(raw[REPORT_KEY], cls) if REPORT_KEY in raw else None
