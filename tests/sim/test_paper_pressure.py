"""Preemption as the paper's artifact has it, in virtual time."""

from __future__ import annotations

import pytest

from cost_profiles.decision import Mode
from experiments.paper.artifact import Played, play_as_published
from experiments.paper.h200 import load_fit
from experiments.paper.pressed import FITTED, block_s, load_memory
from experiments.paper.published import Setting, published_preemptions
from experiments.paper.runs import Cell


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
