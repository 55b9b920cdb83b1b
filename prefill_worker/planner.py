"""Phase 1 of two-phase scheduling: plans a step, and changes nothing.

Walks the sessions that have work in rank order, and grants each the rest of the token
budget, as far as its KV blocks fit. Where they do not fit, it evicts. A victim may be
a session without new tokens, or one that ranks behind the session in question; never
one that was chosen already. If all victims together are not enough, the part that
fits is computed. Sessions that would only restore lost KV come last, evict no
session, and use what is free.

So the first in rank can evict all others, and progresses in every step, unless
hand-overs hold the memory, and those end. An eviction that would not help is not
made, and no session loses more than is needed (victims.py).

Equal leading documents are computed once (in-flight deduplication): a session is left
out if its next block is in the prefix cache or is computed by another session in this
step; it takes the block from the cache before the next step. At most as many are
examined as a step has slots.

Blocks of a session in the CPU KV offload pool are loaded when all before them is
computed: in a step of their own, because only its end confirms the copy. That takes
blocks, but neither tokens nor slots. What lies before them, where an eviction dropped
it, is computed first, and no further.

Some policies keep open sessions out of a step that computes for sealed ones: a client
waits for its end, and less work ends earlier. For the same reason steps of open
sessions are shorter there: a session that is sealed meanwhile waits for their end.

On a mixed worker, sessions that decode come first in rank: each gets the one token that it
lacks, in every step, and prefill gets the rest of the tokens. With `prefill_s` it also gets no
more than it is expected to compute in that time, but a block, so that it goes on.

The walk ends as soon as the tokens, the slots or the memory of the step are
spent; where several tenants are served (tenant_queues.py), it goes on with the others when
only one of them finds no memory, or has only open sessions left in a step that is kept to
sealed ones. Its cost depends on the sessions it chooses, not on those that wait.
"""

from __future__ import annotations

from collections.abc import Hashable

from prefill_worker.inter_token import num_tokens_within
from prefill_worker.preemption import Preemption
from prefill_worker.types import (
    Grant,
    Ledger,
    Load,
    Ranking,
    RequestView,
    StepLimits,
    StepPlan,
    StopReason,
)
from prefill_worker.victims import Victims

# Maximum number of blocks loaded from the host in one step, over all sessions. A copy
# cannot be interrupted, and where nothing is computed meanwhile, new sessions wait for
# it: 1 GiB of an 8B model's KV, some tens of milliseconds.
MAX_LOADED_BLOCKS = 512

# With these reasons sessions of other tenants may still be served.
_ENDS_A_TENANT = (StopReason.SEALED_APART, StopReason.KV_MEMORY)


def num_blocks_needed(view: RequestView, num_tokens: int, block_size: int) -> int:
    """Returns the blocks to allocate so that the session can compute `num_tokens` more tokens."""
    total = -(-(view.num_computed_tokens + num_tokens) // block_size)
    return max(total - view.num_blocks, 0)


def num_tokens_to_host_blocks(view: RequestView, block_size: int) -> int:
    """Returns the tokens to compute before its next blocks on the host, or all that it wants."""
    if not view.host_stop:
        return view.num_wanted_tokens
    return min(view.num_wanted_tokens, view.host_start * block_size - view.num_computed_tokens)


def plan_step(
    ranking: Ranking, limits: StepLimits, ledger: Ledger, preemption: Preemption
) -> StepPlan:
    """Plans one engine step."""
    return _Planning(ranking, limits, ledger, preemption).run()


class _Planning:
    """The scratch state of one call of `plan_step`."""

    def __init__(
        self, ranking: Ranking, limits: StepLimits, ledger: Ledger, preemption: Preemption
    ) -> None:
        self._ranking = ranking
        self._ledger = ledger
        self._limits = limits
        self._preemption = preemption
        self._block_size = limits.block_size
        self._tokens_left = limits.num_tokens
        # Left of the seconds that prefill may take; None: any, for no answer waits.
        self._prefill_s_left: float | None = None
        self._open_tokens = limits.num_tokens
        if limits.num_open_tokens is not None and ranking.keeps_sealed_apart:
            self._open_tokens = min(limits.num_tokens, limits.num_open_tokens)
        # Sessions that need no slot are limited too, so that the walk ends.
        self._slots_left = self._max_others = limits.num_requests
        self._blocks_left = limits.num_free_blocks
        # None until memory is short, which it is in few steps.
        self._victims: Victims | None = None
        self._chosen: set[str] = set()
        self._grants: list[Grant] = []
        self._loads: list[Load] = []
        self._loads_left = MAX_LOADED_BLOCKS
        # Blocks of earlier steps are being loaded, and hold memory.
        self._some_are_loading = False
        # A session that gets tokens of its context is sealed.
        self._some_are_sealed = False
        self._some_prefill = False
        self._deduplicated: list[str] = []
        self._short_of_memory: list[str] = []
        # Keys of the full blocks that this step computes or loads.
        self._coming: set[Hashable] = set()

    def run(self) -> StepPlan:
        walk = self._ranking.to_serve()
        stop: tuple[StopReason, str | None] = (StopReason.ALL_SERVED, None)
        for view in walk:
            if self._victims is not None and view.request_id in self._victims.evicted:
                continue
            if view.is_loading:
                self._some_are_loading = True
                continue
            reason = self._consider(view)
            if reason is None:
                continue
            if stop[1] is None:
                stop = (reason, view.request_id)
            if reason is StopReason.KV_MEMORY:
                self._short_of_memory.append(view.request_id)
                if view.is_decoding:  # others may have room in the blocks that they hold
                    self._chosen.discard(view.request_id)
                    continue
            if reason not in _ENDS_A_TENANT or not walk.leave_out(view):
                break
            self._chosen.discard(view.request_id)
        return self._plan(*stop)

    def _plan(self, stop: StopReason, stopped_at: str | None) -> StepPlan:
        is_alone = not (self._grants or self._loads or self._some_are_loading)
        if stop is StopReason.KV_MEMORY and is_alone:
            stop = StopReason.KV_LEASED
        return StepPlan(
            tuple(self._grants),
            self._victims.evictions() if self._victims is not None else (),
            stop,
            stopped_at,
            tuple(self._deduplicated),
            tuple(self._loads),
            tuple(self._short_of_memory),
        )

    def _consider(self, view: RequestView) -> StopReason | None:
        """Serves one session; returns a reason if the walk ends here."""
        if self._tokens_left <= 0:
            return StopReason.TOKEN_BUDGET
        num_others = max(len(self._deduplicated), len(self._loads) - 1)
        if min(self._slots_left, self._max_others - num_others, self._loads_left) <= 0:
            return StopReason.REQUEST_SLOTS
        if view.is_decoding:
            return self._decode(view)
        if not view.sealed and self._ranking.keeps_sealed_apart:
            if self._some_are_sealed:
                return StopReason.SEALED_APART
            if not self._some_prefill:
                self._tokens_left = min(self._tokens_left, self._open_tokens)
        if self._ledger.has_hit(view.request_id) or (
            self._coming and self._is_computed_for_another(view)
        ):
            self._deduplicated.append(view.request_id)
            return None
        num_tokens = num_tokens_to_host_blocks(view, self._block_size)
        if num_tokens:
            num_tokens = self._num_in_time(view, num_tokens)
            if not num_tokens:
                return StopReason.INTER_TOKEN_TARGET
        if self._prefill(view, num_tokens) if num_tokens else self._load(view):
            return None
        # Later sessions of its tenant hold no block that could be evicted and was not, so
        # they cannot get one either.
        if not view.has_claim:
            return StopReason.NO_ROOM_TO_RESTORE
        return StopReason.KV_MEMORY

    def _decode(self, view: RequestView) -> StopReason | None:
        """Grants the one token that the answer lacks, if there is a block for it."""
        if not self._compute(view, 1):
            return StopReason.KV_MEMORY
        self._prefill_s_left = self._limits.prefill_s
        return None

    def _num_in_time(self, view: RequestView, num_tokens: int) -> int:
        """Returns how many of these tokens prefill has the time for in this step."""
        if self._prefill_s_left is None:
            return num_tokens
        least = 0 if self._some_prefill else self._block_size
        start, seconds = view.num_computed_tokens, self._preemption.costs.recompute_s
        num_in_time = num_tokens_within(self._prefill_s_left, start, num_tokens, seconds)
        return min(max(num_in_time, least), num_tokens)

    def _prefill(self, view: RequestView, num_tokens: int) -> bool:
        """Grants as many of these tokens as fit; returns whether any do."""
        if not self._compute(view, num_tokens):
            return False
        self._some_prefill = True
        self._some_are_sealed |= view.sealed
        if self._prefill_s_left is not None:
            start, num_granted = view.num_computed_tokens, self._grants[-1].num_tokens
            self._prefill_s_left -= self._preemption.costs.recompute_s(start, start + num_granted)
        return True

    def _is_computed_for_another(self, view: RequestView) -> bool:
        """Whether this step already computes or loads the session's next block for another."""
        first = view.num_computed_tokens // self._block_size
        keys = self._ledger.block_keys(view.request_id, first, first + 1)
        return not self._coming.isdisjoint(keys)

    def _compute(self, view: RequestView, num_tokens: int) -> bool:
        """Grants as many of these tokens as fit; returns whether any do."""
        num_tokens = min(num_tokens, self._tokens_left)
        num_blocks = num_blocks_needed(view, num_tokens, self._block_size)
        if num_blocks > self._make_room(view, num_blocks):
            room = (view.num_blocks + self._blocks_left) * self._block_size
            num_tokens = min(num_tokens, room - view.num_computed_tokens)
            num_blocks = num_blocks_needed(view, num_tokens, self._block_size)
        if num_tokens <= 0:
            return False
        self._blocks_left -= num_blocks
        self._tokens_left -= num_tokens
        self._slots_left -= 1
        self._chosen.add(view.request_id)
        self._grants.append(Grant(view.request_id, num_tokens))
        self._note_coming(view, view.num_computed_tokens + num_tokens)
        return True

    def _load(self, view: RequestView) -> bool:
        """Loads as many of its blocks on the host as fit; returns whether any do."""
        num_blocks = min(view.host_stop - view.num_blocks, self._loads_left)
        num_blocks = min(num_blocks, self._make_room(view, num_blocks))
        if num_blocks <= 0:
            return False
        self._blocks_left -= num_blocks
        self._loads_left -= num_blocks
        self._chosen.add(view.request_id)
        self._loads.append(Load(view.request_id, view.host_start, num_blocks))
        self._note_coming(view, (view.host_start + num_blocks) * self._block_size)
        return True

    def _make_room(self, view: RequestView, num_blocks: int) -> int:
        """Evicts until `num_blocks` are free, if possible; returns how many are free then."""
        if num_blocks > self._blocks_left and view.has_claim:
            self._chosen.add(view.request_id)
            if self._victims is None:
                self._victims = Victims(self._ranking, self._ledger, self._limits, self._preemption)
            shortage = num_blocks - self._blocks_left
            self._blocks_left += self._victims.take(view, shortage, self._chosen)
        return self._blocks_left

    def _note_coming(self, view: RequestView, num_tokens: int) -> None:
        """Notes the session's full blocks up to `num_tokens`, which exist after this step."""
        first, stop = view.num_computed_tokens // self._block_size, num_tokens // self._block_size
        keys = self._ledger.block_keys(view.request_id, first, stop)
        if keys:
            self._coming.update(keys)
