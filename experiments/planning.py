"""What phase 1 costs, against sorting all sessions in each step.

Both sides start from the same figures of the same sessions and make the same
plans (compared). The index gets the sessions that the last step touched;
the baseline builds a view of every session and sorts them all. Times include
building views. Runs of steps of the two alternate, so that a busy machine slows
both; runs, not single steps, because each sort of 10,000 sessions leaves the
processor's caches full of them, and what follows it pays.
"""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from cost_profiles.decision import Mode
from cost_profiles.model import CostModel
from cost_profiles.roofline import LLAMA_31_8B, fallback_profile
from experiments.stopwatch import Stopwatch
from prefill_worker.planner import plan_step
from prefill_worker.policy import POLICIES, Policy
from prefill_worker.preemption import Preemption
from prefill_worker.rank_index import RankIndex
from prefill_worker.session_table import SessionTable
from prefill_worker.types import BlockLedger, RequestView, StepLimits, StepPlan
from stream2llm.workload.table import Table, markdown

BLOCK_TOKENS = 16
TOKEN_BUDGET = 2048  # the paper's step for the crawler
SHORT_TOKENS = 32
NO_SHARING = BlockLedger({}, {})
# Memory is plenty, no session is evicted.
PREEMPTION = Preemption(
    Mode.RECOMPUTE,
    CostModel(fallback_profile("", LLAMA_31_8B, 1, block_size=BLOCK_TOKENS, num_cpu_cores=1)),
    BLOCK_TOKENS,
)
NUM_ROUNDS, NUM_INDEX_STEPS, NUM_SORTING_STEPS = 12, 50, 4


@dataclass(slots=True)
class Figures:
    """One session, as a scheduler holds it. Tokens."""

    request_id: str
    arrival: int
    last_event: int
    sealed: bool
    known: int
    computed: int

    def view(self) -> RequestView:
        """The session as the planner sees it."""
        num_blocks = -(-self.computed // BLOCK_TOKENS)
        return RequestView(
            self.request_id,
            self.sealed,
            self.arrival,
            self.last_event,
            self.known,
            self.computed,
            num_blocks,
        )


class _InOrder(list[RequestView]):
    """All sessions in serving order; they are of one tenant."""

    def leave_out(self, view: RequestView) -> bool:
        """There is no other tenant to go on with."""
        return False


class SortedRanking(RankIndex):
    """The baseline: every session's view, sorted. All are of one tenant, and none is guarded."""

    def __init__(self, views: list[RequestView], policy: Policy) -> None:
        super().__init__(policy)
        self._order = sorted(views, key=lambda view: (self._serve_key(view), view.request_id))

    def to_serve(self) -> _InOrder:
        """Sessions that have work, first served first."""
        return _InOrder(view for view in self._order if view.num_wanted_tokens)

    def to_evict(self) -> Iterator[RequestView]:
        """Sessions that hold blocks, first evicted first."""
        keep = sorted(self._order, key=self.policy.eviction_key, reverse=True)
        return (view for view in keep if view.num_blocks)

    def tenant_of(self, view: RequestView) -> str:
        """They are of one."""
        return ""


@dataclass(frozen=True, slots=True)
class Result:
    """Median seconds of a step's planning."""

    num_sessions: int
    num_with_work: int
    num_chosen: float
    policy: str
    index_s: float
    sorting_s: float

    @property
    def ratio(self) -> float:
        """How often the index fits into the time of sorting."""
        return self.sorting_s / self.index_s


def measure(num_sessions: int, num_with_work: int, policy: str, *, short: bool) -> Result:
    """Plans the same steps both ways.

    `short`: every session with work wants 32 tokens, so that a step has room for 64
    sessions; otherwise thousands, and a step goes to one or two.
    """
    figures = _sessions(num_sessions, num_with_work, short)
    table = SessionTable(POLICIES[policy], starvation_guard_steps=10**9, num_lost_blocks=0)
    for each in figures.values():
        table.open(each.request_id, revision=1, sealed=each.sealed)
        _put(table, each)
    limits = StepLimits(TOKEN_BUDGET, 256, 10**9, BLOCK_TOKENS)
    touched = list(figures)[:10]
    index_s, sorting_s, num_chosen = [], [], []
    for step in range(NUM_ROUNDS * (NUM_INDEX_STEPS + NUM_SORTING_STEPS)):
        with Stopwatch() as index:
            plan = _plan_by_index(table, [figures[name] for name in touched], limits)
        if step % (NUM_INDEX_STEPS + NUM_SORTING_STEPS) < NUM_INDEX_STEPS:
            index_s.append(index.seconds)
        else:
            with Stopwatch() as sorting:
                by_sorting = _plan_by_sorting(figures, POLICIES[policy], limits)
            sorting_s.append(sorting.seconds)
            assert plan == by_sorting, "the two disagree"
        num_chosen.append(len(plan.grants))
        touched = _carry_out(plan, figures, short)
    return Result(
        num_sessions, num_with_work, median(num_chosen), policy, median(index_s), median(sorting_s)
    )


def _sessions(num_sessions: int, num_with_work: int, short: bool) -> dict[str, Figures]:
    """Documents of the crawler's length; those without work wait for the next one."""
    rng = random.Random(7)
    order = list(range(num_sessions))
    rng.shuffle(order)
    sessions = {}
    for arrival, number in enumerate(order, start=1):
        known = rng.randint(2_000, 16_000)
        behind = SHORT_TOKENS if short else rng.randint(known // 2, known)
        computed = known - 1 - behind if number < num_with_work else known - 1
        name = f"session-{number}"
        sealed = number < num_with_work and rng.random() < 0.3
        sessions[name] = Figures(name, arrival, arrival, sealed, known, computed)
    return sessions


def _put(table: SessionTable, each: Figures) -> None:
    table.update(each.request_id, each.known, each.computed, -(-each.computed // BLOCK_TOKENS))


def _plan_by_index(table: SessionTable, touched: list[Figures], limits: StepLimits) -> StepPlan:
    for each in touched:
        _put(table, each)
    table.begin_step()
    plan = table.plan(limits, NO_SHARING, PREEMPTION)
    table.end_step(plan, limits.num_free_blocks)
    return plan


def _plan_by_sorting(figures: dict[str, Figures], policy: Policy, limits: StepLimits) -> StepPlan:
    views = [each.view() for each in figures.values()]
    return plan_step(SortedRanking(views, policy), limits, NO_SHARING, PREEMPTION)


def _carry_out(plan: StepPlan, figures: dict[str, Figures], short: bool) -> list[str]:
    """Computes what was granted; every session that is through gets more, so that the work never ends."""
    for grant in plan.grants:
        each = figures[grant.request_id]
        each.computed += grant.num_tokens
        if each.computed >= each.known - 1:
            each.computed = each.known - 1 - SHORT_TOKENS if short else 0
    return [grant.request_id for grant in plan.grants]


def main(args: Namespace) -> Sequence[str]:
    titles = ["policy", "open", "with work", "chosen", "index", "sorting", "ratio", "index to 500"]
    print(markdown(Table(titles, list(_rows()))))
    return ()


def _rows() -> Iterator[list[str]]:
    for policy in POLICIES:
        for short in (False, True):
            own: dict[bool, float] = {}
            for num_sessions in (500, 10_000):
                for num_with_work in (10, num_sessions):
                    result = measure(num_sessions, num_with_work, policy, short=short)
                    at_500 = own.setdefault(num_with_work > 10, result.index_s)
                    yield _cells(result, result.index_s / at_500)


def _cells(result: Result, to_500: float) -> list[str]:
    counts = (result.num_sessions, result.num_with_work, result.num_chosen)
    times = [f"{1e6 * each:,.1f} us" for each in (result.index_s, result.sorting_s)]
    ratios = [f"{result.ratio:,.1f} x", f"{to_500:.2f} x"]
    return [result.policy, *(f"{each:,.0f}" for each in counts), *times, *ratios]
