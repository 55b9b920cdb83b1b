"""The table of live sessions: the input of phase 1, kept up to date by events.

Holds the known sessions, their order of service and eviction, and their waits, and
makes the plan of a step. Independent of vLLM: the scheduler and the simulators keep
the same session table.

One step is `begin_step`, `hits_in_turn`, `plan`, `note_eviction` and `update` for every
session that the plan touched, `end_step`. Events in between are `open`, `note_event`,
`seal`, each with `update` after it, and `close`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from cost_profiles.types import Costs
from prefill_worker.deadlines import Deadlines
from prefill_worker.last_step import LastStep
from prefill_worker.open_step import Waiting, num_open_tokens
from prefill_worker.planner import plan_step
from prefill_worker.policy import Policy
from prefill_worker.preemption import Preemption
from prefill_worker.rank_index import RankIndex
from prefill_worker.session_state import LostBlocks, SessionState
from prefill_worker.starvation_guard import GUARDED_TURN, StarvationGuard
from prefill_worker.types import Ledger, RequestView, StepLimits, StepPlan, StopReason
from stream2llm.api.tenant import ONE_TENANT, TenantShare

_SHORT_OF_MEMORY = (StopReason.KV_MEMORY, StopReason.KV_LEASED)


class SessionTable:
    """All live sessions of one engine, in rank order."""

    def __init__(
        self,
        policy: Policy,
        starvation_guard_steps: int,
        num_lost_blocks: int,
        compute_s: Callable[[int, int], float] | None = None,
    ) -> None:
        """`compute_s`: seconds to compute tokens [from, to); without it work counts as nothing."""
        self._index = RankIndex(policy)
        self._starvation_guard = StarvationGuard(starvation_guard_steps)
        self._num_lost_blocks = num_lost_blocks
        self._deadlines = Deadlines(compute_s)
        self._states: dict[str, SessionState] = {}
        self._num_arrivals = 0
        self._num_events = 0
        # Tokens granted so far.
        self._work = 0
        # Steps that computed something, and steps that were planned.
        self._step = 0
        self._turn = 0
        self._last = LastStep()

    @property
    def policy(self) -> Policy:
        """The policy that ranks the sessions."""
        return self._index.policy

    @property
    def num_sessions(self) -> int:
        """Number of live sessions."""
        return len(self._states)

    @property
    def num_with_work(self) -> int:
        """Number of sessions with tokens to compute; the others are open and wait for context."""
        return self._index.num_with_work

    @property
    def num_with_claim(self) -> int:
        """Number of sessions with work whose tokens are new, or that are sealed."""
        return self._index.num_with_claim

    def num_short_of_memory(self, plan: StepPlan) -> int:
        """Number of sessions that this plan leaves out because their tenant finds no KV block."""
        tenants = set(map(self._index.tenant_name, plan.short_of_memory))
        num_sessions = sum(map(self._index.num_with_claim_of, tenants))
        served = [*(g.request_id for g in plan.grants), *(x.request_id for x in plan.loads)]
        served += plan.deduplicated
        num_served = sum(self._index.tenant_name(each) in tenants for each in served)
        return max(num_sessions - num_served, len(tenants))

    @property
    def num_guarded_in_all(self) -> int:
        """Number of times that sessions began to be guarded."""
        return self._starvation_guard.num_guarded_in_all

    def num_to_step_for(self, num_free_blocks: int) -> int:
        """Number of sessions with work; 0 if the last step could do nothing, nor could another."""
        return 0 if self._last.is_stuck(num_free_blocks) else self.num_with_work

    def has_work(self, request_id: str) -> bool:
        """Whether the session has tokens to compute."""
        return self._index.has_work(request_id)

    def view(self, request_id: str) -> RequestView:
        """Returns the session as the planner sees it now."""
        return self._index[request_id]

    def hits_in_turn(self, limits: StepLimits, ledger: Ledger) -> list[str]:
        """Returns sessions to give their prefix cache hits before the plan of this step.

        They are in rank order, as far as the step's tokens and slots may reach. Those that
        the last plan left out for their hits come first, where several tenants are served: a
        plan goes past a tenant without memory, and so beyond what its tokens let one expect.
        """
        hits = dict.fromkeys(filter(ledger.has_hit, self._waiting_deduplicated()))
        num_tokens = limits.num_tokens
        in_turn = (view for view in self._index.to_serve() if not view.is_loading)
        for view in islice(in_turn, limits.num_requests):
            if num_tokens <= 0:
                break
            if ledger.has_hit(view.request_id):
                hits[view.request_id] = None
            else:
                num_tokens -= view.num_wanted_tokens
        return list(hits)

    def _waiting_deduplicated(self) -> Iterator[str]:
        """Those of the last plan that still have work."""
        if self._index.has_tenants:
            for request_id in self._last.deduplicated:
                if self.has_work(request_id) and not self._index[request_id].is_loading:
                    yield request_id

    def set_policy(self, policy: Policy) -> None:
        """Ranks all sessions anew. Waits go on, and guarded sessions stay guarded."""
        self._last.note_change()
        self._index.set_policy(policy)

    def open(
        self,
        request_id: str,
        *,
        revision: int,
        sealed: bool,
        ttft_slo_ms: int = 0,
        deadline_ms: int = 0,
        tenant: TenantShare = ONE_TENANT,
    ) -> SessionState:
        """Adds a new session, which `update` ranks; `deadline_ms` counts where it is sealed."""
        self._index.enter(request_id, tenant)
        self._num_arrivals += 1
        state = SessionState(
            arrival=self._num_arrivals,
            last_event=0,
            revision=revision,
            sealed=sealed,
            lost_blocks=LostBlocks(self._num_lost_blocks),
            opening_work=self._work,
            ttft_slo_ms=ttft_slo_ms,
            deadline_ms=deadline_ms if sealed else 0,
        )
        self._states[request_id] = state
        self._count_event(state)
        return state

    def _count_event(self, state: SessionState) -> None:
        self._num_events += 1
        state.last_event = self._num_events
        state.last_event_work = self._work

    def note_event(self, request_id: str, num_same: int) -> None:
        """A context event leaves the first `num_same` tokens of the sequence unchanged.

        An event that discards computed KV also ends the guarding of the session.
        """
        state = self._states[request_id]
        self._count_event(state)
        state.lost_until = min(state.lost_until, num_same)
        if self._index[request_id].num_computed_tokens > num_same:
            state.guard_number = 0

    def note_eviction(self, request_id: str, num_used_tokens: int | None = None) -> None:
        """The session loses KV of which `num_used_tokens` some step has used; None: all of it.

        A prefix cache hit that is lost before any step used it does not count as
        computed.
        """
        state = self._states[request_id]
        if num_used_tokens is None:
            num_used_tokens = self._index[request_id].num_computed_tokens
        state.lost_until = max(state.lost_until, num_used_tokens)

    def seal(self, state: SessionState, num_known_tokens: int, deadline_ms: int = 0) -> None:
        """Its context is complete; a guard now covers all of it.

        `deadline_ms` is when its first token is due, by the clock of `begin_step`; 0: no deadline.
        """
        state.sealed = True
        state.deadline_ms = deadline_ms
        if state.guard_number:
            state.promised_tokens = num_known_tokens

    def begin_answer(self, request_id: str) -> None:
        """Its first token is sampled, and more follow here: no deadline counts any more."""
        state = self._states[request_id]
        state.is_answering = True
        state.ttft_slo_ms = state.deadline_ms = 0
        self._deadlines.put(request_id, None)

    def update(
        self,
        request_id: str,
        num_known_tokens: int,
        num_computed_tokens: int,
        num_blocks: int,
        *,
        host_blocks: tuple[int, int] = (0, 0),
        is_loading: bool = False,
    ) -> None:
        """Sets a touched session's present figures; see `RequestView`.

        `host_blocks` is its next run of blocks on the host, [start, stop).
        """
        state = self._states[request_id]
        if num_computed_tokens >= state.lost_until:
            state.lost_until = 0  # all of it is computed again
        view = RequestView(
            request_id,
            state.sealed,
            state.arrival,
            state.last_event,
            num_known_tokens,
            num_computed_tokens,
            num_blocks,
            state.lost_until,
            state.guard_number,
            *host_blocks,
            is_loading,
            state.last_event_work,
            state.opening_work,
            state.ttft_slo_ms,
            state.deadline_ms,
            is_answering=state.is_answering,
        )
        if state.ttft_slo_ms:
            view = self._deadlines.judged(view)
        if state.guard_number and (
            num_computed_tokens >= state.promised_tokens or not view.has_claim
        ):
            state.guard_number = 0
            view = view._replace(guard_number=0)
        self._last.note_change()
        has_claim = self._index.put(view)
        if view.guard_number or not has_claim:
            self._starvation_guard.ends(request_id)
        else:
            self._starvation_guard.waits(request_id, self._step)

    def close(self, request_id: str) -> None:
        """Removes a session that has ended."""
        self._deadlines.put(request_id, None)
        self._last.note_change()
        del self._states[request_id]
        self._index.drop(request_id)
        self._starvation_guard.ends(request_id)

    def note_freed(self) -> None:
        """A hand-over has released blocks, which may be evictable rather than free."""
        self._last.note_change()

    def begin_step(self, now_ms: int = 0) -> None:
        """Guards sessions that have waited too long; decides whether guarded ones go first.

        Sessions that cannot meet their deadline any more at `now_ms` are ranked as late.
        """
        for request_id in self._deadlines.take_lost(now_ms):
            self._rank_anew(request_id)
        self._turn += 1
        self._index.guarded_first = self._turn % GUARDED_TURN == 0
        self._index.begin_step()
        for request_id in self._starvation_guard.take_overdue(self._step):
            self._begin_guarding(request_id)

    def end_step(self, plan: StepPlan, num_free_blocks: int) -> None:
        """Counts a step that computes something: only then do other sessions wait for it.

        `num_free_blocks` is what was free for the plan.
        """
        self._last.note(plan, num_free_blocks)
        if plan.grants:
            self._step += 1
            self._work += sum(grant.num_tokens for grant in plan.grants)
            self._index.charge(plan.grants)

    def _begin_guarding(self, request_id: str) -> None:
        promised_tokens = self._index[request_id].num_target_tokens
        self._starvation_guard.begin(request_id, self._states[request_id], promised_tokens)
        self._rank_anew(request_id)

    def _rank_anew(self, request_id: str) -> None:
        view = self._index[request_id]
        self.update(
            request_id,
            view.num_known_tokens,
            view.num_computed_tokens,
            view.num_blocks,
            host_blocks=(view.host_start, view.host_stop),
            is_loading=view.is_loading,
        )

    def plan(self, limits: StepLimits, ledger: Ledger, preemption: Preemption) -> StepPlan:
        """Makes the plan of this step (phase 1)."""
        limits = self._with_open_tokens(self._with_shared_tokens(limits), preemption.costs)
        plan = plan_step(self._index, limits, ledger, preemption)
        if plan.does_something:
            return plan
        has_guarded = self._index.num_guarded > 0
        if has_guarded and self._index.guarded_first:
            return plan
        if not has_guarded and not self._guards_blocked(plan):
            return plan
        # No other session could be served, so guarded ones go first.
        self._index.guarded_first = True
        return plan_step(self._index, limits, ledger, preemption)

    def _with_shared_tokens(self, limits: StepLimits) -> StepLimits:
        if limits.num_shared_tokens is None or not self._index.is_shared:
            return limits
        return limits._replace(num_tokens=min(limits.num_tokens, limits.num_shared_tokens))

    def _with_open_tokens(self, limits: StepLimits, costs: Costs) -> StepLimits:
        if limits.open_step_s is None or not self._index.keeps_sealed_apart:
            return limits
        waiting = Waiting(self._index.num_with_work, self._index.num_waiting_tokens)
        num_tokens = num_open_tokens(waiting, limits.num_tokens, limits.open_step_s, costs)
        return limits._replace(num_open_tokens=num_tokens)

    def _guards_blocked(self, plan: StepPlan) -> bool:
        """Guards the policy's first session where tenants hold what the others would need.

        Each keeps its share of the memory, so several that do not fit beside each other
        would wait for ever. One that is guarded may evict all, and keeps what it gets.
        A session that is about to take a prefix cache hit may go on by it, unless the step
        before was left to that, too.
        """
        if plan.stop not in _SHORT_OF_MEMORY or not self._index.has_tenants:
            return False
        if not self._last.repeats(plan):
            return False
        first = self._index.first_of_all()
        if first is None or not first.has_claim:
            return False
        self._begin_guarding(first.request_id)
        return True
