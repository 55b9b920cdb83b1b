"""Preemption in virtual time: the modes against each other, and as the paper's artifact has it.

`cost` keeps up with the better of the other two, whichever that is; tails cost less than whole
requests: the small end of `experiments.preemption_simulated`, which has the large one.
"""

from __future__ import annotations

import pytest

from cost_profiles.decision import Mode
from experiments.paper.artifact import Played, play_as_published
from experiments.paper.h200 import load_fit
from experiments.paper.pressed import FITTED, block_s, load_memory
from experiments.paper.published import Setting, published_preemptions
from experiments.paper.runs import Cell
from experiments.preemption_simulated import BOUND, LINKS, WAYS, Pace, Scenario, Tally, Way, device

DEVICES = {"h100-sxm-80g_llama-3.1-8b_tp1": 1.0, "cpu_smollm2-135m-instruct_tp1": 1 / 8}
SCENARIO = Scenario(num_questions=80, num_open=30)


def busy_s(name: str, link: str, way: Way, scenario: Scenario = SCENARIO) -> float:
    tally = device(name, scenario, Pace.STEPS, DEVICES[name]).run(way, LINKS[link])
    assert len(tally.ttfts_s) == scenario.num_questions
    return tally.busy_s


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize(("link", "better"), [("fast", "swap"), ("slow", "recompute")])
def test_cost_takes_what_the_better_way_takes(name: str, link: str, better: str) -> None:
    seconds = {way: busy_s(name, link, WAYS[way]) for way in ("recompute", "swap", "cost")}
    assert min(seconds, key=lambda way: seconds[way] if way != "cost" else 1e9) == better
    assert seconds["cost"] <= BOUND * seconds[better]


@pytest.mark.parametrize(("link", "wrong"), [("fast", "5 x too dear"), ("slow", "5 x too cheap")])
def test_cost_catches_up_from_wrong_beliefs(link: str, wrong: str) -> None:
    """With more questions: what learning costs does not grow with them."""
    scenario = Scenario(num_questions=160, num_open=30)
    right, wrong_at_first = (
        busy_s("cpu_smollm2-135m-instruct_tp1", link, WAYS[way], scenario)
        for way in ("cost", f"cost, copies thought {wrong}")
    )
    assert wrong_at_first <= 1.1 * right


def test_tails_are_computed_again_less_than_whole_requests() -> None:
    scenario = Scenario(num_questions=80, num_open=30, load=0.4, memory_share=0.75)
    on = device("h100-sxm-80g_llama-3.1-8b_tp1", scenario, Pace.STEPS)
    tail, whole = on.run(Way(), None), on.run(Way(whole_requests=True), None)
    assert 0 < tail.counters.recomputed_tokens < whole.counters.recomputed_tokens
    assert first_computed(tail) == first_computed(whole)


def first_computed(tally: Tally) -> int:
    """Tokens that are computed for the first time."""
    return tally.counters.computed_tokens - tally.counters.recomputed_tokens


def played(mode: Mode, copies_s: float | None = None) -> Played:
    setting, machine = Setting("anns", 2.0, 30.0, mode), load_fit()
    cell = Cell(setting, "fcfs", memory=load_memory()["anns"], replays=True)
    return play_as_published(cell, machine, copies_s or block_s(machine.law))


def test_it_is_fitted_to_the_published_number_of_preemptions() -> None:
    ours, theirs = played(Mode.COST).preemptions, published_preemptions()[FITTED["anns"]]
    assert ours.total == pytest.approx(theirs.total, rel=0.25)
    # By the other rule: hardly any victim is copied.
    assert ours.swapped_share < 0.1


def test_a_copied_victim_stays_away_and_a_computed_one_competes() -> None:
    """More are evicted where all are computed again, as published: 342 and 50."""
    again, copied = played(Mode.RECOMPUTE), played(Mode.SWAP)
    assert again.preemptions.total > 1.5 * copied.preemptions.total > 0
    assert (again.preemptions.swapped, copied.preemptions.recomputed) == (0, 0)
    for each in (again, copied):
        assert len(each.run.sessions) == 500
        assert all(session.ttft_s is not None for session in each.run.sessions)


def test_the_newcomer_s_size_decides_what_becomes_of_a_victim() -> None:
    cheap = played(Mode.COST, copies_s=1e-6).preemptions
    dear = played(Mode.COST, copies_s=1e-2).preemptions
    assert cheap.recomputed < 0.1 * cheap.total
    assert dear.swapped == 0
