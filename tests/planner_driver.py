"""Runs sessions on the production planner alone: a dict of blocks, no vLLM, no model.

What phase 2 does with vLLM's tables is done here with plain ones, so that what
goes wrong here is wrong in the session table, the policies, the starvation guard or the planner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from prefill_worker.offload_pool import OffloadPool
from prefill_worker.policy import POLICIES
from prefill_worker.policy_loading import find_policy
from prefill_worker.preemption import Preemption
from prefill_worker.session_state import SessionState
from prefill_worker.session_table import SessionTable
from prefill_worker.types import Eviction, Load, StepLimits, StepPlan
from stream2llm.api.tenant import TenantShare
from stream2llm.serving.sessions.prefix import common_prefix_len
from tests.builders import BY_RANK
from tests.digests import answer_of, prefix_digests
from tests.session_machine import DriverLimits, Tokens

_SHORTAGE = "hand-over-of-another"
# Holds the blocks that are being copied to.
_COPIES = "copies"


class BlockPool:
    """Blocks by number, who holds them, and what the free ones still hold."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.kv: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.held: dict[str, list[int]] = {}
        # Free blocks, the one to be used next first.
        self.free: dict[int, None] = dict.fromkeys(range(num_blocks))
        self.holders: Counter[int] = Counter()
        # The prefix cache: full blocks by the digest at their end.
        self.by_key: dict[Hashable, int] = {}
        self.key_of: dict[int, Hashable] = {}

    def allocate(self, owner: str, num_blocks: int) -> None:
        for _ in range(num_blocks):
            block_id = next(iter(self.free))  # the plan said that there is one
            key = self.key_of.pop(block_id, None)
            if key is not None:
                del self.by_key[key]
            self.hold(owner, block_id)

    def hold(self, owner: str, block_id: int) -> None:
        self.free.pop(block_id, None)
        self.holders[block_id] += 1
        self.held.setdefault(owner, []).append(block_id)

    def let_go(self, owner: str, num_kept: int = 0) -> int:
        """Frees the owner's blocks behind the first ones; returns how many have no holder now."""
        table = self.held.get(owner, [])
        num_freed = 0
        for block_id in reversed(table[num_kept:]):
            self.holders[block_id] -= 1
            if not self.holders[block_id]:
                num_freed += 1
                self.free[block_id] = None
        del table[num_kept:]
        if not table:
            self.held.pop(owner, None)
        return num_freed

    def unhold(self, owner: str, block_id: int) -> None:
        """Undoes one `hold`."""
        self.held[owner].remove(block_id)
        self.holders[block_id] -= 1
        if not self.holders[block_id]:
            self.free[block_id] = None
        if not self.held[owner]:
            del self.held[owner]

    def is_writable(self, block_id: int) -> bool:
        return self.holders[block_id] == 1 and block_id not in self.key_of


@dataclass
class HeldSession:
    """A session as phase 2 keeps it."""

    state: SessionState
    hand_over: bool
    prefix: Tokens
    documents: list[Tokens] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    computed: int = 0


@dataclass
class PendingLoad:
    """Copies on their way to the accelerator."""

    load: Load
    slots: tuple[int, ...]
    block_ids: tuple[int, ...]
    steps_left: int
    # The session has ended, or its context changed: the result is not needed any more.
    is_void: bool = False


class PlannerDriver:
    """A `SessionDriver` over `SessionTable`; also the session table's `Ledger`."""

    policies = tuple(POLICIES)

    def __init__(
        self,
        *,
        policy: str = "fcfs",
        prefix_caching: bool = True,
        num_blocks: int = 24,
        block_size: int = 4,
        token_budget: int = 24,
        step_requests: int = 3,
        starvation_guard_steps: int = 6,
        preemption: Preemption = BY_RANK,
        num_host_slots: int = 0,
        # Steps that a copy from the host takes beyond its own.
        load_delay_steps: int = 0,
        # Whose session one of that name is.
        tenant_of: Callable[[str], TenantShare] = lambda _: TenantShare(),
    ) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.host = OffloadPool(num_host_slots)
        self._host_kv: list[list[int | None]] = [[None] * block_size for _ in range(num_host_slots)]
        self._preemption = preemption
        self._load_delay_steps = load_delay_steps
        self._loads: dict[str, PendingLoad] = {}
        self._void_loads: list[PendingLoad] = []
        self._swaps_fail = False
        self.sessions: dict[str, HeldSession] = {}
        load_steps = 1 + load_delay_steps if num_host_slots else 0
        self.limits = DriverLimits(num_blocks * block_size, token_budget, load_steps=load_steps)
        self.num_evictions = 0
        self._tenant_of = tenant_of
        self._prefix_caching = prefix_caching
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._step_requests = step_requests
        self._table = SessionTable(
            find_policy(policy), starvation_guard_steps, num_lost_blocks=num_blocks
        )
        self._answers: dict[str, list[int]] = {}
        # Answered sessions under a lease: the sequence their blocks hold.
        self._leases: dict[str, list[int]] = {}
        # All digests that were KV at some time, be they lost since or not.
        self._ever_computed: set[int] = set()

    # -- the session table's side: who holds which blocks ------------------------------------

    def block_ids(self, request_id: str) -> Sequence[int]:
        return self.pool.held.get(request_id, ())

    def num_holders(self, block_id: int) -> int:
        return self.pool.holders[block_id]

    def has_hit(self, request_id: str) -> bool:
        session, size = self.sessions[request_id], self._block_size
        first = session.computed // size
        if (first + 1) * size >= len(session.tokens):
            return False
        return any(key in self.pool.by_key for key in self.block_keys(request_id, first, first + 1))

    def block_keys(self, request_id: str, first: int, stop: int) -> Sequence[Hashable]:
        if not self._prefix_caching:
            return ()
        size, digests = self._block_size, self.sessions[request_id].digests
        stop = min(stop, len(digests) // size)
        return [digests[(index + 1) * size - 1] for index in range(first, stop)]

    # -- events -------------------------------------------------------------------------

    def open(self, name: str, prefix: Tokens, *, hand_over: bool) -> None:
        state = self._table.open(name, revision=1, sealed=False, tenant=self._tenant_of(name))
        self.sessions[name] = HeldSession(state, hand_over, prefix)
        self._touch(name)
        self._become(name, list(prefix))

    def append(self, name: str, documents: Sequence[Tokens]) -> None:
        self.update(name, [*self.sessions[name].documents, *documents])

    def update(self, name: str, documents: Sequence[Tokens]) -> None:
        session = self.sessions[name]
        session.documents = list(documents)
        self._become(name, list(sum(documents, session.prefix)))

    def seal(self, name: str, suffix: Tokens) -> None:
        session = self.sessions[name]
        tokens = session.tokens + list(suffix)
        self._become(name, tokens)
        self._table.seal(session.state, len(tokens))
        self._touch(name)

    def _become(self, name: str, tokens: list[int]) -> None:
        session = self.sessions[name]
        same = common_prefix_len(session.tokens, tokens)
        self._table.note_event(name, same)
        session.tokens, session.digests = tokens, prefix_digests(tokens)
        self._cut_back(name, min(same, max(len(tokens) - 1, 0)))
        self._touch(name)

    def _cut_back(self, name: str, valid: int) -> None:
        session, size = self.sessions[name], self._block_size
        self.host.drop_from(name, valid // size)
        pending = self._loads.get(name)
        if pending and valid < (pending.load.first_block + pending.load.num_blocks) * size:
            self._give_up(name)
        if session.computed <= valid:
            return
        table = self.pool.held.get(name, [])
        num_kept = valid // size
        if valid % size and self.pool.is_writable(table[num_kept]):
            num_kept += 1
        else:
            valid = num_kept * size
        session.computed = valid
        self.pool.let_go(name, num_kept)

    def _touch(self, name: str) -> None:
        session = self.sessions[name]
        self.host.drop_before(name, session.computed // self._block_size)
        self._table.update(
            name,
            len(session.tokens),
            session.computed,
            len(self.block_ids(name)),
            host_blocks=self.host.next_run(name),
            is_loading=name in self._loads,
        )

    def cancel(self, name: str) -> None:
        self._leases.pop(name, None)
        if self.sessions.pop(name, None) is not None:
            if name in self._loads:
                self._give_up(name)
            self.host.forget(name)
            self._table.close(name)
        self._let_go_of_lease(name)

    def _let_go_of_lease(self, name: str) -> None:
        """Blocks that others hold too are not free by it, but may be evicted now."""
        self.pool.let_go(name)
        self._table.note_freed()

    # -- a step ---------------------------------------------------------------------------

    def has_work(self) -> bool:
        is_copying = bool(self._loads or self._void_loads)
        return is_copying or self._table.num_to_step_for(len(self.pool.free)) > 0

    def step(self, cancel: str | None = None) -> None:
        if not self.has_work():
            return
        self._table.begin_step()
        plan = self._plan()
        self._table.end_step(plan, len(self.pool.free))
        for eviction in plan.evictions:
            self._evict(eviction)
        self._check_plan(plan)
        for load in plan.loads:
            self._begin_load(load)
        for grant in plan.grants:
            self._compute(grant.request_id, grant.num_tokens)
        if cancel is not None:
            self.cancel(cancel)
        self._end_loads()
        for grant in plan.grants:
            self._end_if_complete(grant.request_id)

    # -- the host --------------------------------------------------------------------------

    def swaps_fail(self, fail: bool) -> None:
        self._swaps_fail = fail

    def _swap_out(self, eviction: Eviction) -> None:
        swap, name = eviction.swap, eviction.request_id
        if not swap.num_blocks:
            return
        slots = self.host.put(name, swap.start, swap.num_blocks)
        table = self.block_ids(name)
        for index, slot in zip(range(swap.start, swap.stop), slots, strict=True):
            kv = self.pool.kv[table[index]]
            assert None not in kv, "a block that is not full is copied"
            self._host_kv[slot] = [None] * self._block_size if self._swaps_fail else list(kv)
        if self._swaps_fail:
            self.host.lose(name, list(zip(range(swap.start, swap.stop), slots, strict=True)))

    def _begin_load(self, load: Load) -> None:
        """Blocks are there and slots are held until the copy has ended, whatever happens."""
        name, session = load.request_id, self.sessions[load.request_id]
        assert session.computed == load.first_block * self._block_size
        assert name not in self._loads
        assert load.num_blocks > 0
        slots = self.host.take(name, load.first_block, load.num_blocks)
        held = len(self.block_ids(name))
        self.pool.allocate(name, load.first_block + load.num_blocks - held)
        block_ids = tuple(self.pool.held[name][load.first_block :])
        assert len(block_ids) == load.num_blocks
        for block_id in block_ids:
            self.pool.hold(_COPIES, block_id)
        self._loads[name] = PendingLoad(load, slots, block_ids, self._load_delay_steps)
        self._touch(name)

    def _give_up(self, name: str) -> None:
        """What is on its way is not wanted any more; it holds its blocks and slots all the same."""
        pending = self._loads.pop(name)
        pending.is_void = True
        self._void_loads.append(pending)
        self.pool.let_go(name, pending.load.first_block)

    def _end_loads(self) -> None:
        for pending in [*self._loads.values(), *self._void_loads]:
            pending.steps_left -= 1
            if pending.steps_left < 0:
                self._end_load(pending)

    def _end_load(self, pending: PendingLoad) -> None:
        load, name = pending.load, pending.load.request_id
        if not self._swaps_fail:
            for slot, block_id in zip(pending.slots, pending.block_ids, strict=True):
                self.pool.kv[block_id] = list(self._host_kv[slot])
        self.host.release(pending.slots)
        for block_id in pending.block_ids:
            self.pool.unhold(_COPIES, block_id)
        if pending.is_void:
            self._void_loads.remove(pending)
            self._table.note_freed()
            return
        del self._loads[name]
        if self._swaps_fail:
            self.pool.let_go(name, load.first_block)
        else:
            self._gain(name, (load.first_block + load.num_blocks) * self._block_size)
        self._touch(name)

    def _gain(self, name: str, num_computed: int) -> None:
        """The session's KV reaches so far now; the prefix cache knows its full blocks."""
        session, size = self.sessions[name], self._block_size
        first, session.computed = session.computed // size, num_computed
        table = self.pool.held[name]
        for index, key in enumerate(self.block_keys(name, first, num_computed // size), first):
            if key not in self.pool.by_key:
                self.pool.by_key[key], self.pool.key_of[table[index]] = table[index], key

    def _step_limits(self) -> StepLimits:
        num_tokens, num_free = self.limits.token_budget, len(self.pool.free)
        return StepLimits(
            num_tokens,
            self._step_requests,
            num_free,
            self._block_size,
            num_host_slots=self.host.num_free,
        )

    def _plan_once(self) -> StepPlan:
        limits = self._step_limits()
        plan = self._table.plan(limits, self, self._preemption)
        again = self._table.plan(limits, self, self._preemption)
        assert plan == again, "planning changed something"
        return plan

    def _plan(self) -> StepPlan:
        """The plan, after those whose turn it is took what the prefix cache has."""
        for name in self._table.hits_in_turn(self._step_limits(), self):
            assert self._adopt(name)
        return self._plan_once()

    def _adopt(self, name: str) -> int:
        """Takes cached blocks behind the computed ones; how many."""
        session, size = self.sessions[name], self._block_size
        first = session.computed // size
        # One token stays uncomputed, or nothing could be sampled.
        keys = self.block_keys(name, first, max(len(session.tokens) - 1, 0) // size)
        num_found = 0
        while num_found < len(keys) and keys[num_found] in self.pool.by_key:
            num_found += 1
        if num_found:
            found = [self.pool.by_key[key] for key in keys[:num_found]]
            # A partly computed block gives way to the found ones.
            self.pool.let_go(name, first)
            for block_id in found:
                self.pool.hold(name, block_id)
            session.computed = (first + num_found) * size
            self._touch(name)
        return num_found

    def _evict(self, eviction: Eviction) -> None:
        self.num_evictions += 1
        assert eviction.request_id not in self._loads
        self._table.note_eviction(eviction.request_id)
        self._swap_out(eviction)
        freed = self.pool.let_go(eviction.request_id, eviction.num_blocks_kept)
        assert freed == eviction.num_blocks_freed
        self.sessions[eviction.request_id].computed = eviction.num_blocks_kept * self._block_size
        self._touch(eviction.request_id)

    def _check_plan(self, plan: StepPlan) -> None:
        """Invariant 4: the step stays inside its tokens, its requests and the free blocks."""
        assert sum(grant.num_tokens for grant in plan.grants) <= self.limits.token_budget
        assert len(plan.grants) <= self._step_requests
        evicted = {eviction.request_id for eviction in plan.evictions}
        served = [each.request_id for each in (*plan.grants, *plan.loads)]
        assert len(set(served)) == len(served)
        assert not evicted.intersection(served)
        needed = sum(self._num_missing(grant.request_id, grant.num_tokens) for grant in plan.grants)
        assert needed + sum(load.num_blocks for load in plan.loads) <= len(self.pool.free)

    def _num_missing(self, name: str, num_tokens: int) -> int:
        end = self.sessions[name].computed + num_tokens
        return max(-(-end // self._block_size) - len(self.block_ids(name)), 0)

    def _compute(self, name: str, num_tokens: int) -> None:
        session, size = self.sessions[name], self._block_size
        assert 0 < num_tokens <= self._table.view(name).num_wanted_tokens
        self.pool.allocate(name, self._num_missing(name, num_tokens))
        table = self.pool.held[name]
        end = session.computed + num_tokens
        self._ever_computed.update(session.digests[session.computed : end])
        for position in range(session.computed, end):
            block_id, offset = table[position // size], position % size
            assert self.pool.holders[block_id] == 1, "computes into a block of others"
            self.pool.kv[block_id][offset] = session.digests[position]
        self._gain(name, end)
        self._touch(name)

    def _end_if_complete(self, name: str) -> None:
        session = self.sessions.get(name)
        if session is None or session.computed < len(session.tokens):
            return
        assert session.state.sealed, f"{name} is open and would be sampled"
        self._answers.setdefault(name, []).append(answer_of(session.tokens))
        self._check_kv(name, session.tokens)
        assert not self.host.has_copies(name), "copies of what is computed are kept"
        self._table.close(name)
        del self.sessions[name]
        if session.hand_over:
            self._leases[name] = session.tokens
        else:
            self.pool.let_go(name)

    # -- memory and policy ------------------------------------------------------------------

    def take_blocks(self, num_blocks: int) -> None:
        self.pool.allocate(_SHORTAGE, min(num_blocks, len(self.pool.free)))

    def return_blocks(self) -> None:
        self._let_go_of_lease(_SHORTAGE)

    def set_policy(self, policy: str) -> None:
        self._table.set_policy(find_policy(policy))

    def leased(self) -> frozenset[str]:
        return frozenset(self._leases)

    def end_lease(self, name: str, *, expired: bool) -> None:
        del self._leases[name]
        self._let_go_of_lease(name)

    def close(self) -> None:
        """Nothing outlives it."""

    # -- answers and checks ---------------------------------------------------------------------

    def answers(self) -> Mapping[str, Sequence[int]]:
        return self._answers

    def one_shot_answer(self, tokens: Tokens) -> int:
        return answer_of(tokens)

    def check(self) -> None:
        """Invariants 2, 5 and 6 between two steps."""
        self._check_blocks()
        if not self.has_work():
            assert not self._plan_once().does_something, "a step is possible, and none is due"
        assert self._table.num_sessions == len(self.sessions)
        work_goes_on = bool(self.has_work() or self._leases or self.pool.held.get(_SHORTAGE))
        num_with_work = 0
        for name, session in self.sessions.items():
            view = self._table.view(name)
            assert view.num_computed_tokens == session.computed <= max(view.num_target_tokens, 0)
            assert view.num_blocks == len(self.block_ids(name))
            target = view.num_target_tokens
            is_served = not target or session.digests[target - 1] in self._ever_computed
            assert is_served or work_goes_on, f"{name}: new context was never computed"
            num_with_work += session.computed < view.num_target_tokens
            self._check_kv(name, session.tokens[: session.computed])
            self._check_copies(name)
        assert self._table.num_with_work == num_with_work
        for name, tokens in self._leases.items():
            self._check_kv(name, tokens)

    def _check_copies(self, name: str) -> None:
        """Whatever is on the host is the KV of the session's own tokens, behind what is computed."""
        session, size = self.sessions[name], self._block_size
        for index, slot in self.host.copies(name).items():
            assert (index + 1) * size < max(len(session.tokens), 1), "no token is left to compute"
            assert index * size >= session.computed
            digests = session.digests[index * size : (index + 1) * size]
            assert self._host_kv[slot] == digests, f"{name}: wrong KV on the host, block {index}"

    def _check_blocks(self) -> None:
        loads = [*self._loads.values(), *self._void_loads]
        self.host.check_integrity([slot for pending in loads for slot in pending.slots])
        assert self.host.sessions() <= self.sessions.keys()
        held = Counter(block_id for table in self.pool.held.values() for block_id in table)
        assert held == +self.pool.holders
        assert self.pool.free.keys() == set(range(self._num_blocks)) - held.keys()
        known = self.sessions.keys() | self._leases.keys() | {_SHORTAGE, _COPIES}
        assert self.pool.held.keys() <= known

    def _check_kv(self, name: str, tokens: Sequence[int]) -> None:
        table = self.pool.held.get(name, [])
        for position, digest in enumerate(prefix_digests(tokens)):
            block, offset = divmod(position, self._block_size)
            assert self.pool.kv[table[block]][offset] == digest, f"{name}: wrong KV at {position}"

    def check_empty(self) -> None:
        assert len(self.pool.free) == self._num_blocks
        assert not self.host.num_used
        assert not self.sessions
        assert not self._table.num_sessions
