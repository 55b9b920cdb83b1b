"""Who has waited too long."""

from __future__ import annotations

import pytest

from prefill_worker.starvation_guard import StarvationGuard

pytestmark = pytest.mark.unit


def test_a_wait_ends_when_the_session_is_guarded_and_once_only() -> None:
    starvation_guard = StarvationGuard(limit_steps=3)
    starvation_guard.waits("a", 1)
    assert starvation_guard.take_overdue(3) == []
    assert starvation_guard.take_overdue(4) == ["a"]
    assert starvation_guard.take_overdue(9) == []


def test_a_wait_goes_on_however_often_it_is_noted() -> None:
    starvation_guard = StarvationGuard(limit_steps=3)
    starvation_guard.waits("a", 1)
    starvation_guard.waits("a", 3)
    assert starvation_guard.take_overdue(4) == ["a"]


def test_a_wait_that_ended_begins_anew() -> None:
    starvation_guard = StarvationGuard(limit_steps=3)
    starvation_guard.waits("a", 1)
    starvation_guard.ends("a")
    starvation_guard.waits("a", 3)
    assert starvation_guard.take_overdue(4) == []
    assert starvation_guard.take_overdue(6) == ["a"]


def test_the_longest_wait_comes_first() -> None:
    starvation_guard = StarvationGuard(limit_steps=1)
    starvation_guard.waits("b", 1)
    starvation_guard.waits("a", 2)
    assert starvation_guard.take_overdue(5) == ["b", "a"]
