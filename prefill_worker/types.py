"""The values that cross the boundary of the pure scheduling core.

`RequestView`, `BlockLedger` and `StepLimits` go in, `StepPlan` comes out. None
of them refers to vLLM, a clock or anything that can change under the planner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class RequestView:
    """One session as the planner sees it. Counts are of tokens or blocks."""

    request_id: str
    # No more context will come: the last token may be computed and the first
    # one of the answer sampled.
    sealed: bool
    # Counts arrivals at this worker; lower came earlier.
    arrival: int
    # Counts context events at this worker; higher was touched later.
    last_event: int
    num_known_tokens: int
    num_computed_tokens: int
    # In its block table, shared ones included.
    num_blocks: int

    @property
    def num_target_tokens(self) -> int:
        """Tokens that may be computed now.

        An open session keeps its last token back: with one token uncomputed
        the engine samples nothing.
        """
        return self.num_known_tokens if self.sealed else max(self.num_known_tokens - 1, 0)

    @property
    def num_wanted_tokens(self) -> int:
        """Tokens that may be computed and are not."""
        return max(self.num_target_tokens - self.num_computed_tokens, 0)


@dataclass(frozen=True, slots=True)
class BlockLedger:
    """Who holds which KV blocks; needed only when memory is short."""

    block_ids_by_request: Mapping[str, tuple[int, ...]]
    # How many holders each of those blocks has, leases included.
    ref_counts: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What one engine step may use."""

    num_tokens: int
    num_requests: int
    num_free_blocks: int
    block_size: int


class EvictionReason(StrEnum):
    """Why a session loses its KV."""

    FOR_HIGHER_RANK = "for_higher_rank"


class DeferralReason(StrEnum):
    """Why a session with work gets nothing in this step."""

    TOKEN_BUDGET = "token_budget"
    REQUEST_SLOTS = "request_slots"
    NO_BLOCKS = "no_blocks"


@dataclass(frozen=True, slots=True)
class Grant:
    """Compute that many tokens of that session."""

    request_id: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Eviction:
    """Free all blocks of that session; it will be computed again."""

    request_id: str
    num_blocks_freed: int
    reason: EvictionReason


@dataclass(frozen=True, slots=True)
class Deferral:
    """Nothing for that session in this step."""

    request_id: str
    reason: DeferralReason


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the next engine step does, in order: evict, then compute."""

    grants: tuple[Grant, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    deferrals: tuple[Deferral, ...] = ()
