"""The most answers in time that any scheduler could give."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.deadline_bound import Demand, demands, fewest_missed, final_ranges, least_seconds
from stream2llm.simulator.steps import StepLaw
from stream2llm.simulator.work import Change, Task

# A second a token, and eight more a step.
LAW = StepLaw(8.0, 1.0, 0.0)


def at_once(*sessions: tuple[float, float, float]) -> list[Demand]:
    """Sessions of (seal, due, work), all of which comes with the seal."""
    return [Demand(seal, due, ((seal, work),)) for seal, due, work in sessions]


def test_tokens_count_from_when_they_come_for_good() -> None:
    changes = (
        Change(0.0, 0, 10, seals=False),
        Change(1.0, 10, 30, seals=False),
        Change(2.0, 15, 40, seals=False, is_update=True),
        Change(3.0, 40, 44, seals=True),
    )
    task = Task("a", changes, ttft_slo_s=5.0)
    assert list(final_ranges(task)) == [(3.0, 40, 44), (2.0, 15, 40), (1.0, 10, 15), (0.0, 0, 10)]
    (demand,) = demands([task], LAW, token_budget=8)
    assert (demand.sealed_s, demand.due_s) == (3.0, 8.0)
    assert demand.work_s(0.0) == pytest.approx(88.0)
    assert demand.work_s(2.0) == pytest.approx(58.0)


def test_tokens_take_their_share_of_full_steps() -> None:
    assert least_seconds(LAW, 8, 0, 8) == 16.0
    assert least_seconds(LAW, 8, 4, 8) == 8.0
    assert least_seconds(LAW, 8, 0, 80) == 160.0


@pytest.mark.parametrize(
    ("sessions", "missed"),
    [
        (at_once((0, 1, 1), (0, 2, 1)), 0),
        (at_once((0, 1, 1), (0, 1, 1)), 1),
        # The largest goes.
        (at_once((0, 9, 9), (0, 10, 1), (0, 10, 1)), 1),
        # Two overloads, one after the other.
        (at_once((0, 1, 1), (0, 1, 1), (5, 6, 1), (5, 6, 1)), 2),
        # What came before the seal may have been computed.
        ([Demand(9, 10, ((9, 1), (0, 8))), Demand(9, 10, ((9, 0), (0, 1)))], 0),
    ],
)
def test_the_fewest_that_miss(sessions: list[Demand], missed: int) -> None:
    assert fewest_missed(sessions) == missed


small = st.integers(0, 5)


@st.composite
def streamed(draw: st.DrawFn) -> Demand:
    """A session that brings some work when it opens, and some with its seal."""
    opened, seal = sorted((draw(small), draw(small)))
    return Demand(seal, seal + 1 + draw(small), ((seal, draw(small)), (opened, draw(small))))


@given(st.lists(streamed(), min_size=1, max_size=6))
def test_no_choice_of_sessions_that_can_all_be_in_time_is_larger(sessions: list[Demand]) -> None:
    feasible = max(
        size
        for size in range(len(sessions) + 1)
        for chosen in combinations(sessions, size)
        if are_in_time(chosen)
    )
    assert len(sessions) - fewest_missed(sessions) >= feasible


def are_in_time(chosen: tuple[Demand, ...]) -> bool:
    """Whether the earliest deadline first, which is optimal when all can be met, meets them."""
    left = [[each.due_s, *piece] for each in chosen for piece in each.pieces]
    for second in range(20):
        for piece in sorted(left):
            if piece[2] and piece[1] <= second:
                piece[2] -= 1
                break
        if any(work and due <= second + 1 for due, _, work in left):
            return False
    return True
