"""Steps in which answers wait for their next token, against what the target promises.

1. Every answer that has room for it gets its token, whatever else is there.
2. Prefill beside answers takes no longer than its time, or is one block of one session.
3. It takes as much as fits: one more token of the session at which it ends would be too long.
4. Without an answer in the step nothing is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from prefill_worker.planner import plan_step
from prefill_worker.policy import POLICIES
from prefill_worker.types import RequestView, StepPlan, StopReason
from tests.builders import LinearCosts, a_ledger, a_preemption, a_ranking, a_request, limits

_BLOCK = 32
_TOKEN_S = 0.001
# Rounding of a sum of many such products.
_LITTLE_S = 1e-9


@dataclass(frozen=True)
class Step:
    """Answers, and sessions that prefill; memory is ample."""

    answers: list[RequestView]
    others: list[RequestView]
    policy: str
    prefill_s: float

    def plan(self, prefill_s: float | None) -> StepPlan:
        ranking = a_ranking(*self.answers, *self.others, policy=self.policy)
        bounds = limits(tokens=600, requests=16, prefill_s=prefill_s)
        costs = LinearCosts(token_s=_TOKEN_S)
        return plan_step(ranking, bounds, a_ledger(), a_preemption(costs=costs))

    def prefilled(self, plan: StepPlan) -> list[int]:
        """Tokens of each grant that is prefill's."""
        names = {view.request_id for view in self.others}
        return [grant.num_tokens for grant in plan.grants if grant.request_id in names]


@st.composite
def steps(draw: st.DrawFn, least_answers: int = 1) -> Step:
    """Up to six sessions that answer and six that prefill."""
    answers = [
        a_request(
            f"a{n}", sealed=True, arrival=n, known=known, computed=known - 1, is_answering=True
        )
        for n, known in enumerate(
            draw(st.lists(st.integers(2, 300), min_size=least_answers, max_size=6)), 1
        )
    ]
    others = [
        a_request(f"p{n}", sealed=sealed, arrival=n, last_event=n, known=known, computed=computed)
        for n, (known, computed, sealed) in enumerate(
            draw(
                st.lists(
                    st.tuples(st.integers(40, 400), st.integers(0, 30), st.booleans()), max_size=6
                )
            ),
            10,
        )
    ]
    policy = draw(st.sampled_from(sorted(POLICIES)))
    return Step(answers, others, policy, draw(st.integers(0, 500)) / 1000)


@given(steps())
def test_1_every_answer_gets_its_token(step: Step) -> None:
    granted = {grant.request_id: grant.num_tokens for grant in step.plan(step.prefill_s).grants}
    assert all(granted[view.request_id] == 1 for view in step.answers)


@given(steps())
def test_2_prefill_keeps_to_its_time_or_goes_on_by_a_block(step: Step) -> None:
    prefilled = step.prefilled(step.plan(step.prefill_s))
    is_in_time = sum(prefilled) * _TOKEN_S <= step.prefill_s + _LITTLE_S
    assert is_in_time or (len(prefilled) == 1 and prefilled[0] <= _BLOCK)


@given(steps())
def test_3_prefill_takes_all_of_its_time(step: Step) -> None:
    plan = step.plan(step.prefill_s)
    if plan.stop is StopReason.INTER_TOKEN_TARGET:
        num_tokens = sum(step.prefilled(plan))
        assert (num_tokens + 1) * _TOKEN_S > step.prefill_s - _LITTLE_S


@given(steps(least_answers=0))
def test_4_without_answers_nothing_is_cut(step: Step) -> None:
    alone = Step([], step.others, step.policy, step.prefill_s)
    assert alone.plan(step.prefill_s) == alone.plan(None)
