"""The table of live sessions: the input of phase 1, kept up to date by events.

Holds the known sessions, their order of service and eviction, and their waits, and
makes the plan of a step. Independent of vLLM: the scheduler and the simulators keep
the same session table.

One step is `begin_step`, `hits_in_turn`, `plan`, `note_eviction` and `update` for every
session that the plan touched, `end_step`. Events in between are `open`, `note_event`,
`seal`, each with `update` after it, and `close`.
"""

from __future__ import annotations

from itertools import islice

from prefill_worker.planner import plan_step
from prefill_worker.policy import Policy
from prefill_worker.preemption import Preemption
from prefill_worker.rank_index import RankIndex
from prefill_worker.session_state import LostBlocks, SessionState
from prefill_worker.starvation_guard import PROMOTED_TURN, StarvationGuard
from prefill_worker.types import Ledger, RequestView, StepLimits, StepPlan


class SessionTable:
    """All live sessions of one engine, in rank order."""

    def __init__(self, policy: Policy, starvation_guard_steps: int, num_lost_blocks: int) -> None:
        self._index = RankIndex(policy)
        self._starvation_guard = StarvationGuard(starvation_guard_steps)
        self._num_lost_blocks = num_lost_blocks
        self._states: dict[str, SessionState] = {}
        self._num_arrivals = 0
        self._num_events = 0
        self._num_promotions = 0
        # Tokens granted so far.
        self._work = 0
        # Steps that computed something, and steps that were planned.
        self._step = 0
        self._turn = 0
        # Number of free blocks with which the last step could serve no session, while
        # none has been touched since.
        self._stuck_with_free_blocks: int | None = None

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

    @property
    def num_promotions(self) -> int:
        """Number of promotions so far."""
        return self._num_promotions

    def num_to_step_for(self, num_free_blocks: int) -> int:
        """Number of sessions with work; 0 if the last step could do nothing, nor could another."""
        if self._stuck_with_free_blocks == num_free_blocks:
            return 0
        return self.num_with_work

    def has_work(self, request_id: str) -> bool:
        """Whether the session has tokens to compute."""
        return self._index.has_work(request_id)

    def view(self, request_id: str) -> RequestView:
        """Returns the session as the planner sees it now."""
        return self._index[request_id]

    def hits_in_turn(self, limits: StepLimits, ledger: Ledger) -> list[str]:
        """Returns sessions to give their prefix cache hits before the plan of this step.

        They are in rank order, as far as the step's tokens and slots may reach.
        """
        num_tokens, hits = limits.num_tokens, []
        in_turn = (view for view in self._index.to_serve() if not view.is_loading)
        for view in islice(in_turn, limits.num_requests):
            if num_tokens <= 0:
                break
            if ledger.has_hit(view.request_id):
                hits.append(view.request_id)
            else:
                num_tokens -= view.num_wanted_tokens
        return hits

    def set_policy(self, policy: Policy) -> None:
        """Ranks all sessions anew. Waits and promotions continue."""
        self._stuck_with_free_blocks = None
        self._index.set_policy(policy)

    def open(self, request_id: str, *, revision: int, sealed: bool) -> SessionState:
        """Adds a new session, which `update` ranks."""
        self._num_arrivals += 1
        state = SessionState(
            arrival=self._num_arrivals,
            last_event=0,
            revision=revision,
            sealed=sealed,
            lost_blocks=LostBlocks(self._num_lost_blocks),
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

        An event that discards computed KV also ends the session's promotion.
        """
        state = self._states[request_id]
        self._count_event(state)
        state.lost_until = min(state.lost_until, num_same)
        if self._index[request_id].num_computed_tokens > num_same:
            state.promotion = 0

    def note_eviction(self, request_id: str, num_used_tokens: int | None = None) -> None:
        """The session loses KV of which `num_used_tokens` some step has used; None: all of it.

        A prefix cache hit that is lost before any step used it does not count as
        computed.
        """
        state = self._states[request_id]
        if num_used_tokens is None:
            num_used_tokens = self._index[request_id].num_computed_tokens
        state.lost_until = max(state.lost_until, num_used_tokens)

    def seal(self, state: SessionState, num_known_tokens: int) -> None:
        """Its context is complete; a promotion now covers all of it."""
        state.sealed = True
        if state.promotion:
            state.promised_tokens = num_known_tokens

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
            state.promotion,
            *host_blocks,
            is_loading,
            state.last_event_work,
        )
        if state.promotion and (num_computed_tokens >= state.promised_tokens or not view.has_claim):
            state.promotion = 0
            view = view._replace(promotion=0)
        self._stuck_with_free_blocks = None
        has_claim = self._index.put(view)
        if view.promotion or not has_claim:
            self._starvation_guard.ends(request_id)
        else:
            self._starvation_guard.waits(request_id, self._step)

    def close(self, request_id: str) -> None:
        """Removes a session that has ended."""
        self._stuck_with_free_blocks = None
        del self._states[request_id]
        self._index.drop(request_id)
        self._starvation_guard.ends(request_id)

    def note_freed(self) -> None:
        """A hand-over has released blocks, which may be evictable rather than free."""
        self._stuck_with_free_blocks = None

    def begin_step(self) -> None:
        """Promotes sessions that have waited too long; decides whether promoted ones go first."""
        self._turn += 1
        self._index.promoted_first = self._turn % PROMOTED_TURN == 0
        for request_id in self._starvation_guard.take_overdue(self._step):
            self._promote(request_id)

    def end_step(self, plan: StepPlan, num_free_blocks: int) -> None:
        """Counts a step that computes something: only then do other sessions wait for it.

        `num_free_blocks` is what was free for the plan.
        """
        if plan.grants:
            self._step += 1
            self._work += sum(grant.num_tokens for grant in plan.grants)
        elif not plan.followers and not plan.loads:
            self._stuck_with_free_blocks = num_free_blocks

    def _promote(self, request_id: str) -> None:
        state, view = self._states[request_id], self._index[request_id]
        self._num_promotions += 1
        state.promotion = self._num_promotions
        state.promised_tokens = view.num_target_tokens
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
        plan = plan_step(self._index, limits, ledger, preemption)
        if plan.does_something or self._index.promoted_first or not self._index.num_promoted:
            return plan
        # No other session could be served, so promoted ones go first.
        self._index.promoted_first = True
        return plan_step(self._index, limits, ledger, preemption)
