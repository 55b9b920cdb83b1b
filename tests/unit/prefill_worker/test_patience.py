"""Who has waited too long."""

from __future__ import annotations

import pytest

from prefill_worker.patience import Patience

pytestmark = pytest.mark.unit


def test_a_wait_ends_in_a_promotion_and_once_only() -> None:
    patience = Patience(limit_steps=3)
    patience.waits("a", 1)
    assert patience.take_overdue(3) == []
    assert patience.take_overdue(4) == ["a"]
    assert patience.take_overdue(9) == []


def test_a_wait_goes_on_however_often_it_is_noted() -> None:
    patience = Patience(limit_steps=3)
    patience.waits("a", 1)
    patience.waits("a", 3)
    assert patience.take_overdue(4) == ["a"]


def test_a_wait_that_ended_begins_anew() -> None:
    patience = Patience(limit_steps=3)
    patience.waits("a", 1)
    patience.ends("a")
    patience.waits("a", 3)
    assert patience.take_overdue(4) == []
    assert patience.take_overdue(6) == ["a"]


def test_the_longest_wait_comes_first() -> None:
    patience = Patience(limit_steps=1)
    patience.waits("b", 1)
    patience.waits("a", 2)
    assert patience.take_overdue(5) == ["b", "a"]
