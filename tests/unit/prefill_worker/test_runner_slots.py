"""Who loses a slot of the model runner."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefill_worker.runner_slots import RunnerSlots

pytestmark = pytest.mark.unit


def test_who_was_chosen_longest_ago_loses_its_slot() -> None:
    slots = RunnerSlots(2)
    assert slots.choose(["a", "b"]) == []
    assert slots.choose(["a"]) == []
    assert slots.choose(["c"]) == ["b"]
    assert slots.choose(["b"]) == ["a"]


def test_a_slot_of_an_ended_session_is_free() -> None:
    slots = RunnerSlots(2)
    slots.choose(["a", "b"])
    slots.release("a")
    slots.release("unknown")
    assert slots.choose(["c"]) == []


def test_a_runner_without_slots_keeps_all() -> None:
    slots = RunnerSlots(0)
    assert slots.choose(["a", "b", "c"]) == []


@given(st.lists(st.sets(st.sampled_from("abcdefg"), max_size=3), max_size=20))
def test_those_chosen_keep_slots_and_no_more_are_lost_than_have_to_be(
    steps: list[set[str]],
) -> None:
    slots, holders = RunnerSlots(3), set[str]()
    for chosen in steps:
        lost = slots.choose(chosen)
        assert chosen.isdisjoint(lost)
        assert set(lost) <= holders
        assert len(lost) == max(len(holders | chosen) - 3, 0)
        holders = (holders | chosen).difference(lost)
