"""The budget of a step for open sessions, for any costs.

1. It is at least one token and at most what a step may compute.
2. More work, more sessions or a longer target never make it smaller.
3. It takes no longer than the target, and is no longer than a full step, unless it is the least.
4. The fixed part of a step has at most a quarter of its time, unless it is as long as it may be.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefill_worker.open_step import FULL_TOKENS, MIN_TOKENS, Waiting, num_open_tokens
from tests.builders import LinearCosts

SECONDS = st.floats(0.0, 2.0)
COSTS = st.builds(LinearCosts, token_s=st.floats(0.0, 0.01), step_fixed_s=st.floats(0.0, 0.1))
WAITING = st.builds(Waiting, st.integers(0, 100), st.integers(0, 500_000))
MOST = st.integers(1, 16_384)
# Rounding of a product.
_LITTLE_S = 1e-9


@given(WAITING, MOST, SECONDS, COSTS)
def test_it_is_one_token_at_least_and_what_a_step_may_compute_at_most(
    waiting: Waiting, most: int, target_s: float, costs: LinearCosts
) -> None:
    num_tokens = num_open_tokens(waiting, most, target_s, costs)
    assert min(MIN_TOKENS, most) <= num_tokens <= most


@given(WAITING, WAITING, MOST, SECONDS, SECONDS, COSTS)
def test_more_work_and_more_time_never_make_it_smaller(
    waiting: Waiting, more: Waiting, most: int, target_s: float, more_s: float, costs: LinearCosts
) -> None:
    larger = Waiting(*(one + other for one, other in zip(waiting, more, strict=True)))
    assert num_open_tokens(waiting, most, target_s, costs) <= num_open_tokens(
        larger, most, target_s + more_s, costs
    )


@given(WAITING, MOST, SECONDS, COSTS)
def test_it_takes_no_longer_than_the_target_but_for_the_least_that_a_step_is_given(
    waiting: Waiting, most: int, target_s: float, costs: LinearCosts
) -> None:
    num_tokens = num_open_tokens(waiting, most, target_s, costs)
    if num_tokens > MIN_TOKENS:
        fixed_s = 4 * costs.step_fixed_s + _LITTLE_S
        takes_s = costs.recompute_s(0, num_tokens)
        is_full = num_tokens <= FULL_TOKENS and takes_s <= target_s + _LITTLE_S
        assert is_full or takes_s <= fixed_s


@given(WAITING, MOST, SECONDS, COSTS)
def test_the_fixed_part_has_at_most_a_quarter_of_the_time(
    waiting: Waiting, most: int, target_s: float, costs: LinearCosts
) -> None:
    num_tokens = num_open_tokens(waiting, most, target_s, costs)
    with_one_more_s = costs.recompute_s(0, num_tokens + 1)
    assert num_tokens == most or with_one_more_s >= 4 * costs.step_fixed_s - _LITTLE_S
