"""One prefill or mixed worker in virtual time; keeps no clock of its own.

Session table, plan, victims, preemption and CPU KV offload pool are those of a prefill worker. No
prefix cache, and no blocks that two sessions share. A step's copies end with the
step, beside its computing where the device does both at once, else after it.

A session has one token of its answer here, or, at a mixed worker, all of them: then each step
computes the last one and gives the next, and planner and inter-token target are a mixed worker's.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from cost_profiles.correction import CorrectedCostModel
from cost_profiles.types import Costs
from prefill_worker.inter_token import InterTokenTarget
from prefill_worker.offload_pool import OffloadPool
from prefill_worker.policy_loading import find_policy
from prefill_worker.preemption import Preemption
from prefill_worker.session_state import SessionState
from prefill_worker.session_table import SessionTable
from prefill_worker.types import Eviction, Grant, Load, StepLimits, StepPlan
from stream2llm.api.tenant import ONE_TENANT, TenantShare
from stream2llm.simulator.kv_blocks import KvBlocks
from stream2llm.simulator.prefill_settings import Counters, PrefillSettings
from stream2llm.simulator.step_time import StepSeconds, StepTime
from stream2llm.simulator.steps import Range
from stream2llm.simulator.work import Change


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step that has begun."""

    seconds: float
    # Sessions that have one more token of their answer at its end.
    sampled: tuple[str, ...]
    # Sessions it computes for.
    computed: tuple[str, ...] = ()


@dataclass(slots=True)
class _Session:
    state: SessionState
    num_known: int = 0
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    is_loading: bool = False
    # Tokens of its answer that are still to come here.
    num_to_sample: int = 1


class PrefillWorker:
    """See the module's text. Also the session table's `Ledger`.

    `step_s` and `truth` are what steps and copies take, `beliefs` what the scheduler
    goes by and corrects.
    """

    def __init__(
        self,
        settings: PrefillSettings,
        step_s: StepSeconds,
        truth: Costs,
        beliefs: CorrectedCostModel,
    ) -> None:
        self.counters = Counters()
        self._settings = settings
        self._time = StepTime(settings, step_s, truth, beliefs, self.counters)
        options = settings.options
        self._preemption = Preemption(options.preemption, beliefs, settings.block_size)
        self._table = SessionTable(
            find_policy(options.policy),
            options.starvation_guard_steps,
            settings.num_blocks,
            beliefs.recompute_s,
        )
        self._blocks = KvBlocks(settings.num_blocks)
        self._host = OffloadPool(settings.num_host_blocks)
        self._sessions: dict[str, _Session] = {}
        self._leases: dict[str, list[int]] = {}
        self._inter_token = InterTokenTarget(settings.inter_token_target_ms)
        self._loading: list[tuple[Load, tuple[int, ...]]] = []
        self.is_short_of_blocks = False

    @property
    def num_sessions(self) -> int:
        """Open ones, and those whose answer is not complete here."""
        return len(self._sessions)

    @property
    def num_with_work(self) -> int:
        """Sessions with tokens to compute."""
        return self._table.num_with_work

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that sessions or leases hold."""
        return 1 - self._blocks.num_free / self._settings.num_blocks

    def session_counters(self, name: str) -> SessionState:
        """What became of a session's tokens; before it is done here."""
        return self._sessions[name].state

    # -- the session table's side ---------------------------------------------------------------

    def block_ids(self, request_id: str) -> Sequence[int]:
        """The blocks of a session."""
        return self._sessions[request_id].blocks

    def num_holders(self, block_id: int) -> int:
        """Its session, and its offers."""
        return self._blocks.num_holders(block_id)

    def has_hit(self, request_id: str) -> bool:
        """Never: there is no prefix cache."""
        return False

    def block_keys(self, request_id: str, first: int, stop: int) -> Sequence[Hashable]:
        """None: no two blocks are equal."""
        return ()

    # -- events, between steps ---------------------------------------------------------

    def change(
        self,
        name: str,
        change: Change,
        *,
        tenant: TenantShare = ONE_TENANT,
        ttft_slo_ms: int = 0,
        num_to_sample: int = 1,
    ) -> None:
        """A session's sequence becomes another one; the first change opens it.

        Its first token is due `ttft_slo_ms` after the change that seals; 0: no deadline.
        `num_to_sample` tokens of its answer come from here.
        """
        session = self._sessions.get(name)
        if session is None:
            state = self._table.open(
                name,
                revision=1,
                sealed=change.seals,
                tenant=tenant,
                ttft_slo_ms=ttft_slo_ms,
                deadline_ms=_deadline_ms(change, ttft_slo_ms),
            )
            session = self._sessions[name] = _Session(state, num_to_sample=num_to_sample)
            # What an opening brings is no event of its own.
            session.num_known = change.num_known
        else:
            self._splice(name, session, change, _deadline_ms(change, ttft_slo_ms))
        self._touch(name)

    def _splice(self, name: str, session: _Session, change: Change, deadline_ms: int) -> None:
        """Keeps what is valid, as the scheduler does."""
        self._table.note_event(name, change.num_kept)
        lost = session.num_computed - change.num_kept
        if lost > 0:
            session.state.invalidated += lost
            self.counters.invalidated_tokens += lost
        session.num_known = change.num_known
        valid = min(change.num_kept, max(change.num_known - 1, 0))
        if session.num_computed > valid:
            self._cut(session, valid)
        size = self._settings.block_size
        num_cut = self._host.drop_from(name, valid // size) * size
        session.state.invalidated += num_cut
        self.counters.invalidated_tokens += num_cut
        if change.seals:
            self._table.seal(session.state, change.num_known, deadline_ms)

    def _cut(self, session: _Session, num_tokens: int) -> None:
        session.num_computed = num_tokens
        num_blocks = -(-num_tokens // self._settings.block_size)
        self._blocks.let_go(session.blocks[num_blocks:])
        del session.blocks[num_blocks:]

    def release(self, name: str) -> None:
        """The KV of a session that is done here is wanted no more."""
        self._blocks.let_go(self._leases.pop(name))
        self._table.note_freed()

    # -- offers ------------------------------------------------------------------------

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self._settings.block_size

    @property
    def num_blocks(self) -> int:
        """All there are."""
        return self._settings.num_blocks

    def num_computed(self, name: str) -> int:
        """Tokens of a live session; between steps."""
        return self._sessions[name].num_computed

    def has_work(self, name: str) -> bool:
        """Whether a live session has tokens to compute."""
        return self._table.has_work(name)

    def pin(self, name: str, num_tokens: int) -> tuple[int, ...]:
        """Holds the blocks of the session's first tokens; they stay until `unpin`."""
        blocks = tuple(self._sessions[name].blocks[: num_tokens // self._settings.block_size])
        self._blocks.pin(blocks)
        return blocks

    def unpin(self, blocks: Sequence[int]) -> None:
        """An offer has ended."""
        self._blocks.unpin(blocks)
        self._table.note_freed()

    def _touch(self, name: str) -> None:
        session = self._sessions[name]
        self._host.drop_before(name, session.num_computed // self._settings.block_size)
        self._table.update(
            name,
            session.num_known,
            session.num_computed,
            len(session.blocks),
            host_blocks=self._host.next_run(name),
            is_loading=session.is_loading,
        )

    # -- a step ------------------------------------------------------------------------

    def begin_step(self, now_s: float = 0.0) -> StepResult | None:
        """Plans and begins a step; None: it would do nothing."""
        if not self._table.num_to_step_for(self._blocks.num_free):
            return None
        self._table.begin_step(int(1000 * now_s))
        num_free = self._blocks.num_free
        plan = self._plan()
        self._table.end_step(plan, num_free)
        self.is_short_of_blocks = bool(plan.short_of_memory)
        outs = [self._evict(eviction) for eviction in plan.evictions]
        self._loading = [(load, self._begin_load(load)) for load in plan.loads]
        if not plan.does_something:
            return None
        decoding = {each.request_id for each in plan.grants if self._is_decoding(each.request_id)}
        ranges = [
            self._compute(grant, is_prompt=grant.request_id not in decoding)
            for grant in plan.grants
        ]
        ins = [load.num_blocks for load in plan.loads]
        seconds = self._time.step(ranges, [each for each in outs if each], ins)
        self._inter_token.observe(len(decoding), len(plan.grants), seconds)
        computed = tuple(grant.request_id for grant in plan.grants)
        return StepResult(seconds, self._sampled(plan), computed)

    def _is_decoding(self, name: str) -> bool:
        return self._table.view(name).is_decoding

    def _plan(self) -> StepPlan:
        """Phase 1; `experiments/paper/artifact.py` decides some of it in another way."""
        return self._table.plan(self._limits(), self, self._preemption)

    def _limits(self) -> StepLimits:
        settings = self._settings
        return StepLimits(
            settings.token_budget,
            settings.step_requests,
            self._blocks.num_free,
            settings.block_size,
            settings.whole_requests,
            self._host.num_free,
            num_shared_tokens=settings.options.shared_token_budget,
            prefill_s=self._inter_token.prefill_s,
            open_step_s=settings.options.open_step_s,
        )

    def _evict(self, eviction: Eviction) -> int:
        """Carries an eviction out; how many blocks go to the host."""
        name, swap = eviction.request_id, eviction.swap
        session = self._sessions[name]
        self._table.note_eviction(name)
        if swap.num_blocks:
            self._host.put(name, swap.start, swap.num_blocks)
            self.counters.swapped_victims += 1
            self.counters.swapped_blocks += swap.num_blocks
        else:
            self.counters.recomputed_victims += 1
        self._cut(session, eviction.num_blocks_kept * self._settings.block_size)
        self._touch(name)
        return swap.num_blocks

    def _begin_load(self, load: Load) -> tuple[int, ...]:
        session = self._sessions[load.request_id]
        slots = self._host.take(load.request_id, load.first_block, load.num_blocks)
        self._blocks.grow(session.blocks, load.first_block + load.num_blocks)
        session.is_loading = True
        self._touch(load.request_id)
        return slots

    def _compute(self, grant: Grant, *, is_prompt: bool) -> Range:
        session = self._sessions[grant.request_id]
        start, stop = session.num_computed, session.num_computed + grant.num_tokens
        self._blocks.grow(session.blocks, -(-stop // self._settings.block_size))
        session.num_computed = stop
        if is_prompt:
            again = session.state.record_computed(start, grant.num_tokens)
            self.counters.computed_tokens += grant.num_tokens
            self.counters.recomputed_tokens += again
        self._touch(grant.request_id)
        return start, stop

    def _sampled(self, plan: StepPlan) -> tuple[str, ...]:
        return tuple(each.request_id for each in plan.grants if self._samples(each.request_id))

    def _samples(self, name: str) -> bool:
        session = self._sessions[name]
        return session.state.sealed and session.num_computed == session.num_known

    def end_step(self, result: StepResult) -> list[str]:
        """Copies are there; returns the sessions that are done here, whose KV stays until `release`."""
        for load, slots in self._loading:
            session = self._sessions[load.request_id]
            session.is_loading = False
            session.num_computed = len(session.blocks) * self._settings.block_size
            self._host.release(slots)
            self._touch(load.request_id)
        self._loading = []
        done = [name for name in result.sampled if not self._goes_on(name)]
        for name in done:
            self._leases[name] = self._sessions.pop(name).blocks
            self._host.forget(name)
            self._table.close(name)
        return done

    def _goes_on(self, name: str) -> bool:
        """Whether more tokens of the answer come here; the one just sampled is then to be computed."""
        session = self._sessions[name]
        session.num_to_sample -= 1
        if not session.num_to_sample:
            return False
        session.num_known += 1
        if not session.state.is_answering:
            self._table.begin_answer(name)
        self._touch(name)
        return True


def _deadline_ms(change: Change, ttft_slo_ms: int) -> int:
    return int(1000 * change.at_s) + ttft_slo_ms if change.seals and ttft_slo_ms else 0
