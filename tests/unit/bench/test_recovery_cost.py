"""When recovery counts as too dear."""

from __future__ import annotations

import pytest

from experiments.recovery_cost import Round, in_turn, missed, ratios, table

pytestmark = pytest.mark.unit


def rounds(factor: float) -> list[Round]:
    times = [factor * (1 + number % 10 / 1000) for number in range(200)]
    return [Round((each, each), 8 * each, 2 * each) for each in times]


def test_each_of_the_two_is_first_in_every_second_round() -> None:
    assert [in_turn(number) for number in range(3)] == [["on", "off"], ["off", "on"], ["on", "off"]]


@pytest.mark.parametrize(("factor", "num_missed"), [(0.9, 0), (1.0, 0), (1.005, 0), (1.05, 3)])
def test_only_what_is_certainly_beyond_one_percent_is_missed(
    factor: float, num_missed: int
) -> None:
    on, off = rounds(factor), rounds(1.0)
    found = ratios(on, off)
    assert len(missed(found)) == num_missed
    assert f"| TTFT | {factor:.4f} |" in table({"on": on, "off": off}, found)
