"""An engine in virtual time: the production planner, and a clock that costs move.

Book, plan, victims, preemption and host pool are those of a prefill worker; what
is made up is the seconds. A step takes what computing its tokens costs, and its
copies beside that: one after the other where the host does both (a CPU), at
the same time where the device copies beside its work. No prefix cache, and no
documents that two sessions share. Copies end with the step they begin in.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from bench.crawler import Arrival
from cost_profiles.correction import CorrectedCostModel, tells_of_recompute, tells_of_swap
from cost_profiles.decision import Mode
from cost_profiles.types import Costs
from prefill_worker.book import SessionBook
from prefill_worker.host_pool import HostPool
from prefill_worker.policy import POLICIES
from prefill_worker.preemption import Preemption
from prefill_worker.session_state import SessionState
from prefill_worker.types import Eviction, Grant, Load, StepLimits, StepPlan


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the engine and its scheduler."""

    num_blocks: int
    block_size: int
    step_tokens: int
    num_host_blocks: int
    mode: Mode = Mode.RECOMPUTE
    policy: str = "fcfs"
    whole_requests: bool = False
    step_requests: int = 64
    # Whether copies take place while the step computes.
    overlaps: bool = False
    patience_steps: int = 1000


@dataclass(slots=True)
class Tally:
    """What a run came to; seconds are virtual."""

    # Of steps, without waiting for context.
    busy_s: float = 0.0
    # When the last answer began.
    end_s: float = 0.0
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    recomputed_victims: int = 0
    swapped_victims: int = 0
    # From the seal to the first token, of each session.
    ttfts_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Session:
    state: SessionState
    sealed_s: float = 0.0
    num_known: int = 0
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    is_loading: bool = False


class VirtualEngine:
    """One engine; also the book's `Ledger`.

    `truth` is what steps and copies take, `beliefs` what the scheduler goes by
    and corrects.
    """

    def __init__(self, settings: Settings, truth: Costs, beliefs: CorrectedCostModel) -> None:
        self.now_s = 0.0
        self.tally = Tally()
        self._settings = settings
        self._truth = truth
        self._beliefs = beliefs
        self._preemption = Preemption(settings.mode, beliefs, settings.block_size)
        self._book = SessionBook(
            POLICIES[settings.policy], settings.patience_steps, settings.num_blocks
        )
        self._free = list(range(settings.num_blocks))
        self._host = HostPool(settings.num_host_blocks)
        self._sessions: dict[str, _Session] = {}

    @property
    def num_sessions(self) -> int:
        """Live ones."""
        return len(self._sessions)

    # -- the book's side ---------------------------------------------------------------

    def block_ids(self, request_id: str) -> Sequence[int]:
        """The blocks of a session."""
        return self._sessions[request_id].blocks

    def num_holders(self, block_id: int) -> int:
        """One: nothing is shared."""
        return 1

    def has_hit(self, request_id: str) -> bool:
        """Never: there is no prefix cache."""
        return False

    def block_keys(self, request_id: str, first: int, stop: int) -> Sequence[Hashable]:
        """None: no two blocks are equal."""
        return ()

    # -- events ------------------------------------------------------------------------

    def arrive(self, arrival: Arrival, at_s: float) -> None:
        """Context comes, or came at that moment; the first opens a session, the last seals it."""
        name = arrival.name
        if arrival.begins:
            self._sessions[name] = _Session(self._book.open(name, revision=1, sealed=False))
            self._touch(name)
        session = self._sessions[name]
        self._book.note_event(name, session.num_known)
        session.num_known += arrival.num_tokens
        if arrival.seals:
            self._book.seal(session.state, session.num_known)
            session.sealed_s = at_s
        self._touch(name)

    def _touch(self, name: str) -> None:
        session = self._sessions[name]
        self._host.drop_before(name, session.num_computed // self._settings.block_size)
        self._book.update(
            name,
            session.num_known,
            session.num_computed,
            len(session.blocks),
            host_blocks=self._host.next_run(name),
            is_loading=session.is_loading,
        )

    # -- a step ------------------------------------------------------------------------

    def step(self) -> bool:
        """Plans and carries out one step, if it brings anybody further; whether it did."""
        if not self._book.num_to_step_for(len(self._free)):
            return False
        self._book.begin_step()
        plan = self._book.plan(self._limits(), self, self._preemption)
        self._book.end_step(plan, len(self._free))
        num_out = [self._evict(eviction) for eviction in plan.evictions]
        slots = [self._begin_load(load) for load in plan.loads]
        ranges = [self._compute(grant) for grant in plan.grants]
        self._pass_time(ranges, [n for n in num_out if n], [len(each) for each in slots])
        self._end(plan, slots)
        return plan.does_something

    def _limits(self) -> StepLimits:
        settings = self._settings
        return StepLimits(
            settings.step_tokens,
            settings.step_requests,
            len(self._free),
            settings.block_size,
            settings.whole_requests,
            self._host.num_free,
        )

    def _evict(self, eviction: Eviction) -> int:
        """Carries an eviction out; how many blocks go to the host."""
        name, swap = eviction.request_id, eviction.swap
        session = self._sessions[name]
        self._book.note_eviction(name)
        if swap.num_blocks:
            self._host.put(name, swap.start, swap.num_blocks)
            self.tally.swapped_victims += 1
        else:
            self.tally.recomputed_victims += 1
        self._free.extend(session.blocks[eviction.num_blocks_kept :])
        del session.blocks[eviction.num_blocks_kept :]
        session.num_computed = eviction.num_blocks_kept * self._settings.block_size
        self._touch(name)
        return swap.num_blocks

    def _begin_load(self, load: Load) -> tuple[int, ...]:
        session = self._sessions[load.request_id]
        slots = self._host.take(load.request_id, load.first_block, load.num_blocks)
        self._allocate(session, load.first_block + load.num_blocks)
        session.is_loading = True
        self._touch(load.request_id)
        return slots

    def _allocate(self, session: _Session, num_blocks: int) -> None:
        while len(session.blocks) < num_blocks:
            session.blocks.append(self._free.pop())

    def _compute(self, grant: Grant) -> tuple[int, int]:
        session = self._sessions[grant.request_id]
        start, stop = session.num_computed, session.num_computed + grant.num_tokens
        self._allocate(session, -(-stop // self._settings.block_size))
        session.num_computed = stop
        self.tally.computed_tokens += grant.num_tokens
        again = session.state.record_computed(start, grant.num_tokens)
        self.tally.recomputed_tokens += again
        self._touch(grant.request_id)
        return start, stop

    def _end(self, plan: StepPlan, slots: Iterable[tuple[int, ...]]) -> None:
        """Copies are there, and complete sessions answered."""
        for load, taken in zip(plan.loads, slots, strict=True):
            session = self._sessions[load.request_id]
            session.is_loading = False
            session.num_computed = len(session.blocks) * self._settings.block_size
            self._host.release(taken)
            self._touch(load.request_id)
        for grant in plan.grants:
            session = self._sessions[grant.request_id]
            if session.state.sealed and session.num_computed == session.num_known:
                self._answer(grant.request_id)

    def _answer(self, name: str) -> None:
        session = self._sessions.pop(name)
        self.tally.ttfts_s.append(self.now_s - session.sealed_s)
        self.tally.end_s = self.now_s
        self._host.forget(name)
        self._free.extend(session.blocks)
        self._book.close(name)
        self._book.note_freed()

    # -- time --------------------------------------------------------------------------

    def _pass_time(
        self, ranges: Sequence[tuple[int, int]], outs: Sequence[int], ins: Sequence[int]
    ) -> None:
        """The step's seconds; what production would learn of them is learned."""
        compute_s = sum(self._truth.recompute_s(*each) for each in ranges)
        out_s = sum(map(self._truth.swap_out_s, outs))
        in_s = sum(map(self._truth.swap_in_s, ins))
        together = max if self._settings.overlaps else _add
        step_s = together(compute_s, out_s + in_s)
        self.now_s += step_s
        self.tally.busy_s += step_s
        # Where copies are made beside the step, production cannot tell them from it.
        seen_s = step_s if self._settings.overlaps else compute_s
        if tells_of_recompute(sum(b - a for a, b in ranges), self._settings.step_tokens):
            self._beliefs.observe_step(ranges, seen_s)
        if tells_of_swap(sum(outs)):
            self._beliefs.observe_swap_out(sum(outs), out_s)
        if tells_of_swap(sum(ins)):
            self._beliefs.observe_swap_in(sum(ins), in_s)


def _add(first: float, second: float) -> float:
    return first + second


def play(engine: VirtualEngine, arrivals: Iterable[Arrival]) -> Tally:
    """Runs until every session is answered; context comes at its second."""
    coming = iter(arrivals)
    following = next(coming, None)
    while following is not None or engine.num_sessions:
        while following is not None and following.at <= engine.now_s:
            engine.arrive(following, following.at)
            following = next(coming, None)
        if not engine.step():
            assert following is not None, "sessions wait, and nothing will ever come"
            engine.now_s = max(engine.now_s, following.at)
    return engine.tally


def play_by_steps(engine: VirtualEngine, arrivals: Iterable[Arrival]) -> Tally:
    """The same, but context comes at its step, however long steps take.

    Steps with nothing to do count too, and take no time.
    """
    coming = iter(arrivals)
    following = next(coming, None)
    num_steps = 0
    while following is not None or engine.num_sessions:
        while following is not None and following.at <= num_steps:
            engine.arrive(following, engine.now_s)
            following = next(coming, None)
        moved = engine.step()
        assert moved or following is not None, "sessions wait, and nothing will ever come"
        num_steps += 1
    return engine.tally
