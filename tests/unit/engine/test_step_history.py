"""What an engine's steps so far allow the next one."""

from __future__ import annotations

import pytest

from stream2llm.engine.step_history import (
    LONGEST_FACTOR,
    MAX_LIMIT_S,
    NEW_SIZE_LIMIT_S,
    USUAL_FACTOR,
    WINDOW_STEPS,
    StepHistory,
)

pytestmark = pytest.mark.unit


def a_history(*steps: tuple[int, float], times: int = 2) -> StepHistory:
    """A history of these steps (number of tokens, seconds), each so many times."""
    history = StepHistory()
    for num_tokens, duration_s in steps:
        for _ in range(times):
            history.add(num_tokens, duration_s)
    return history


def test_the_first_step_may_compile() -> None:
    assert StepHistory().limit_s(4) == NEW_SIZE_LIMIT_S


def test_a_known_size_may_take_a_multiple_of_what_is_usual() -> None:
    history = a_history((1024, 1.0))
    # A step of 1024 tokens is the smallest of its size; the largest is twice as long.
    assert history.limit_s(1024) == USUAL_FACTOR * 2.0
    assert history.limit_s(2047) == history.limit_s(1024)


def test_a_size_that_was_met_once_may_still_compile() -> None:
    assert a_history((1024, 0.1), times=1).limit_s(1024) == NEW_SIZE_LIMIT_S


def test_a_larger_size_may_take_longer_in_proportion_to_its_tokens() -> None:
    history = a_history((8, 0.1))
    assert history.limit_s(8) == pytest.approx(USUAL_FACTOR * 0.2)
    # 512 has six bits more than 8.
    assert history.limit_s(512) == pytest.approx(USUAL_FACTOR * 0.2 * 64)


def test_what_is_extrapolated_ends_somewhere() -> None:
    assert a_history((1, 1.0)).limit_s(8192) == MAX_LIMIT_S


def test_one_exception_counts_twice_and_not_as_usual() -> None:
    history = a_history((1, 0.05), times=20)
    history.add(1, 54.0)
    assert history.limit_s(1) == LONGEST_FACTOR * 54.0


def test_what_a_smaller_step_took_a_larger_one_may_take_too() -> None:
    history = a_history((2048, 0.1), (4, 3.0))
    assert history.limit_s(2048) >= USUAL_FACTOR * 3.0
    assert history.limit_s(2) == NEW_SIZE_LIMIT_S  # but no smaller one


def test_a_slow_time_is_forgotten_but_for_its_longest_step() -> None:
    history = a_history((1, 3.0))
    for _ in range(2 * WINDOW_STEPS):
        history.add(1, 0.05)
    assert history.limit_s(1) == LONGEST_FACTOR * 3.0


def test_a_step_without_tokens_says_nothing_of_one_with_tokens() -> None:
    assert a_history((0, 0.001)).limit_s(512) == NEW_SIZE_LIMIT_S
