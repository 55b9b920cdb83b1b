"""How long a step for open sessions is, by example: a token takes a millisecond."""

from __future__ import annotations

import pytest

from prefill_worker.open_step import Waiting, num_open_tokens
from tests.builders import LinearCosts

_MOST = 8192


@pytest.mark.parametrize(
    ("num_sessions", "num_tokens", "expected"),
    [
        pytest.param(1, 10, 600, id="a-third-of-a-full-step-for-one-session"),
        pytest.param(2, 20, 1200, id="two-thirds-for-two"),
        pytest.param(3, 30, 1800, id="all-of-it-for-three"),
        pytest.param(9, 90, 1800, id="and-no-more-for-nine"),
        pytest.param(1, 4000, 1000, id="a-quarter-of-much-work-for-one"),
        pytest.param(1, 80_000, 1800, id="a-quarter-of-very-much-is-cut-at-the-target"),
    ],
)
def test_more_work_makes_longer_steps(num_sessions: int, num_tokens: int, expected: int) -> None:
    waiting = Waiting(num_sessions, num_tokens)
    assert num_open_tokens(waiting, _MOST, 1.8, LinearCosts(token_s=0.001)) == expected


def test_a_target_that_would_allow_more_leaves_a_full_step_as_it_is() -> None:
    assert num_open_tokens(Waiting(9, 90_000), _MOST, 60.0, LinearCosts(token_s=0.001)) == 2048


def test_a_step_is_not_so_short_that_its_fixed_part_has_more_than_a_quarter() -> None:
    costs = LinearCosts(token_s=0.001, step_fixed_s=1.0)
    assert num_open_tokens(Waiting(1, 10), _MOST, 0.001, costs) == 4000


def test_a_slow_device_gets_some_tokens_whatever_the_target() -> None:
    slow = LinearCosts(token_s=1.0)
    assert num_open_tokens(Waiting(9, 90_000), _MOST, 0.16, slow) == 512
    assert num_open_tokens(Waiting(9, 90_000), 100, 0.16, slow) == 100
