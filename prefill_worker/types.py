"""The values that cross the boundary of the pure scheduling core.

A `Ranking` of `RequestView`s, a `Ledger` and `StepLimits` go in, a `StepPlan`
comes out. None of them refers to vLLM, a clock or anything that changes while
a plan is made.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from cost_profiles.decision import Reason


class RequestView(NamedTuple):
    """One session as the planner and a policy see it.

    All that an order of sessions may depend on. Every field is a scalar; counts are of
    prompt tokens or of KV blocks (`block_size` tokens each) on this worker. Documents,
    clients and wall-clock time are not visible: `arrival`, `last_event` and
    `last_event_work` are the worker's own clocks.

    A tuple, because one is made for each session that a step touches, and a
    frozen dataclass takes three times as long to make.
    """

    request_id: str
    """The session at the engine; unique, and without meaning for an order."""
    sealed: bool
    """Whether the context is complete: the last token may be computed, and the first one of
    the answer sampled. A client waits for exactly these sessions."""
    arrival: int
    """Number of the session at this worker, from 1 in order of arrival; unique."""
    last_event: int
    """Number of its last context event (open, append, update, seal) among all sessions' events
    at this worker; higher was touched later."""
    num_known_tokens: int
    """Tokens of the context so far, prefix and suffix included."""
    num_computed_tokens: int
    """How many of these, from the start, have their KV on the device now."""
    num_blocks: int
    """Device blocks in its block table, shared ones included."""
    num_reached_tokens: int = 0
    """Known tokens that were computed at some time; more than `num_computed_tokens` while
    evicted KV is not restored, else 0."""
    guard_number: int = 0
    """Its number among the sessions that the starvation guard has put before others, from 1; 0: it is
    not guarded."""
    host_start: int = 0
    """First block index of its next run of blocks in the CPU KV offload pool."""
    host_stop: int = 0
    """Block index behind that run; equal to `host_start`: there is none."""
    is_loading: bool = False
    """Whether blocks are being copied back from the host: until the copy ends, the session is
    neither served nor evicted."""
    last_event_work: int = 0
    """Prompt tokens that this worker had computed for all sessions at the last event: a clock
    that stands still while nothing is computed."""
    opening_work: int = 0
    """Prompt tokens that this worker had computed for all sessions when this one was opened."""
    ttft_slo_ms: int = 0
    """Milliseconds from its seal in which its first token is due; 0: no deadline."""
    deadline_ms: int = 0
    """When that is, by the worker's clock, from the seal on; 0: open, or no deadline."""
    remaining_ms: int = 0
    """Milliseconds that computing its wanted tokens takes by the learned costs, alone; 0 for a
    session without a deadline."""
    is_late: bool = False
    """Whether it is sealed and its deadline cannot be met any more, even if it is served at once.
    A session becomes late once, and is ranked anew then."""
    is_answering: bool = False
    """The answer has begun at this worker and goes on here: the known tokens include the answer's."""

    @property
    def num_target_tokens(self) -> int:
        """Tokens that may be computed now.

        An open session keeps its last token back: with one token uncomputed
        the engine samples nothing.
        """
        num_tokens = self.num_known_tokens
        return num_tokens if self.sealed or not num_tokens else num_tokens - 1

    @property
    def num_wanted_tokens(self) -> int:
        """Tokens that may be computed and are not."""
        num_wanted = self.num_target_tokens - self.num_computed_tokens
        return num_wanted if num_wanted > 0 else 0

    @property
    def is_decoding(self) -> bool:
        """True when only the last token of the answer is to be computed: one token in each step."""
        return self.is_answering and self.num_wanted_tokens == 1 and not self.is_loading

    @property
    def has_claim(self) -> bool:
        """Whether others may be evicted for it: it is sealed, or has tokens never computed yet.

        An open session that would only restore KV it has lost has none. If it
        had, two sessions that do not fit together would evict each other for
        ever, each idle while the other computes.
        """
        num_tokens = self.num_target_tokens
        is_new = self.sealed or num_tokens > self.num_reached_tokens
        return is_new and num_tokens > self.num_computed_tokens


class Walk(Protocol):
    """A walk down the sessions that have work, first served first."""

    def __iter__(self) -> Iterator[RequestView]: ...

    def leave_out(self, view: RequestView) -> bool:
        """Skips the rest of that session's tenant; returns whether others may still be served."""


class Ranking(Protocol):
    """The sessions in the two orders a plan needs; both are read only as far as needed."""

    def to_serve(self) -> Walk:
        """Sessions that have work, first served first."""

    @property
    def has_tenants(self) -> bool:
        """Whether the sessions are of several tenants."""

    def to_evict(self) -> Iterator[RequestView]:
        """Sessions that hold blocks, first evicted first."""

    def may_evict(self, beneficiary: RequestView, victim: RequestView) -> bool:
        """Whether the one may take blocks of the other, which is not served in this step."""

    def tenant_of(self, view: RequestView) -> str:
        """The name of the session's tenant."""

    def is_protected(self, beneficiary: RequestView, victim: RequestView) -> bool:
        """Whether the one may take blocks of no session of the other's tenant."""

    @property
    def keeps_sealed_apart(self) -> bool:
        """Whether open sessions get nothing of a step that computes for sealed ones."""

    def may_swap_order(self, first: RequestView, second: RequestView) -> bool:
        """Whether these two of `to_evict` might as well be evicted the other way round."""


class Ledger(Protocol):
    """Who holds which KV blocks."""

    def block_ids(self, request_id: str) -> Sequence[int]:
        """The blocks of a session, shared ones included."""

    def num_holders(self, block_id: int) -> int:
        """How many hold a block: sessions, leases and all others."""

    def has_hit(self, request_id: str) -> bool:
        """Whether the prefix cache knows the block that the session computes next."""

    def block_keys(self, request_id: str, first: int, stop: int) -> Sequence[Hashable]:
        """What the full blocks [first, stop) of the session's known tokens hold, as far as there are.

        Equal keys mean equal tokens from the start of the sequence on, so that one
        block can serve both. Without a prefix cache there are none.
        """


@dataclass(frozen=True, slots=True)
class BlockLedger:
    """A ledger at rest, as simulators and tests use it."""

    block_ids_by_request: Mapping[str, tuple[int, ...]]
    ref_counts: Mapping[int, int]
    keys_by_request: Mapping[str, tuple[Hashable, ...]] = field(default_factory=dict)
    hits: frozenset[str] = frozenset()

    def block_ids(self, request_id: str) -> Sequence[int]:
        """The blocks of a session, shared ones included."""
        return self.block_ids_by_request.get(request_id, ())

    def num_holders(self, block_id: int) -> int:
        """How many hold a block: sessions, leases and all others."""
        return self.ref_counts[block_id]

    def has_hit(self, request_id: str) -> bool:
        """Whether the prefix cache knows the block that the session computes next."""
        return request_id in self.hits

    def block_keys(self, request_id: str, first: int, stop: int) -> Sequence[Hashable]:
        """What those blocks hold; see `Ledger`."""
        return self.keys_by_request.get(request_id, ())[first:stop]


class StepLimits(NamedTuple):
    """What one engine step may use. A tuple, as all that is made in each step."""

    num_tokens: int
    num_requests: int
    num_free_blocks: int
    block_size: int
    # The naive way, for comparison: a victim loses all of its blocks.
    evicts_whole_requests: bool = False
    # Free slots of the CPU KV offload pool, for blocks that are swapped out.
    num_host_slots: int = 0
    # What a step without sealed sessions may have of `num_tokens`, under policies that
    # keep sealed ones apart.
    num_open_tokens: int | None = None
    # What a step may have of `num_tokens` while several tenants are served.
    num_shared_tokens: int | None = None
    # Seconds that prefill may take of a step in which answers wait for a token; None: any.
    prefill_s: float | None = None
    # Seconds that a step without sealed sessions aims at, from which the session table finds
    # `num_open_tokens`; None: it stays as it is.
    open_step_s: float | None = None


class EvictionReason(StrEnum):
    """Why a session loses its KV."""

    # It has nothing new to compute, and another session has.
    IDLE = "idle"
    # It has, and so has a session that goes before it.
    LOWER_RANK = "lower_rank"


class StopReason(StrEnum):
    """Why the walk down the ranking ended; all sessions behind that point wait for it."""

    # Complete sessions have the step to themselves.
    SEALED_APART = "sealed_apart"
    # All sessions with work are served.
    ALL_SERVED = "all_served"
    TOKEN_BUDGET = "token_budget"
    # Answers wait for the step, and prefill has had its time.
    INTER_TOKEN_TARGET = "inter_token_target"
    REQUEST_SLOTS = "request_slots"
    # The rest of the memory is held by sessions that go first.
    KV_MEMORY = "kv_memory"
    # Not even the first in rank has room: hand-overs hold the memory.
    KV_LEASED = "kv_leased"
    # Only sessions are left that would restore lost KV, and nothing is free.
    NO_ROOM_TO_RESTORE = "no_room_to_restore"


class Grant(NamedTuple):
    """Compute that many tokens of that session."""

    request_id: str
    num_tokens: int


class Load(NamedTuple):
    """Copy so many of the session's blocks back from the host, beginning with that one."""

    request_id: str
    first_block: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class SwapChoice:
    """What of an evicted tail goes to the host; the rest is computed again."""

    reason: Reason
    # Indices of the session's blocks, [start, stop); equal: none.
    start: int = 0
    stop: int = 0

    @property
    def num_blocks(self) -> int:
        """Blocks that are copied."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Eviction:
    """Free the session's blocks behind the first ones; some are copied to the host before."""

    request_id: str
    num_blocks_kept: int
    # Blocks without a holder afterwards; with several evictions in this order.
    num_blocks_freed: int
    reason: EvictionReason
    # The session that the blocks are for.
    beneficiary: str
    # What of it is copied, and why that or nothing.
    swap: SwapChoice = SwapChoice(Reason.MODE)


class StepPlan(NamedTuple):
    """What the next engine step does, in order: evict, load, compute."""

    grants: tuple[Grant, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    stop: StopReason = StopReason.ALL_SERVED
    # The session at which the walk ended, and the first that waits for `stop`.
    stopped_at: str | None = None
    # Sessions whose next block the prefix cache knows, or will know because
    # another one computes it in this step; they take it in the next.
    deduplicated: tuple[str, ...] = ()
    loads: tuple[Load, ...] = ()
    # The first session of each tenant that found no KV block for new tokens.
    short_of_memory: tuple[str, ...] = ()

    @property
    def does_something(self) -> bool:
        """Whether the step computes or moves anything."""
        return bool(self.grants or self.loads)
