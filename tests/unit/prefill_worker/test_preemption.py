"""What goes to the host, and what losing it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cost_profiles.correction import CALIBRATION_OBSERVATIONS, CorrectedCostModel
from cost_profiles.decision import Mode, Reason
from prefill_worker.cost_calibration import MIN_SPACING, Trials
from prefill_worker.preemption import Preemption
from prefill_worker.types import SwapChoice
from tests.builders import LinearCosts, a_preemption, a_request

# Blocks of four tokens: four seconds to compute, one to copy one way; three more for a copy.
COSTS = LinearCosts(token_s=1.0, block_s=1.0, copy_s=3.0)
# Ten full blocks, and two tokens in another.
VICTIM = a_request(known=50, computed=42, num_blocks=11)


def choose(mode: str, num_kept: int, num_found: int = 0, num_slots: int = 99) -> SwapChoice:
    preemption = a_preemption(mode, COSTS, block_size=4)
    return preemption.choose(VICTIM, num_kept, num_found, num_slots)


@pytest.mark.parametrize(
    ("chosen", "choice"),
    [
        # Only full blocks are copied.
        (("swap", 7), SwapChoice(Reason.MODE, 7, 10)),
        (("swap", 10), SwapChoice(Reason.NO_BLOCKS)),
        (("recompute", 0), SwapChoice(Reason.MODE)),
        # By cost at the victim's own size: 8 s against 2 * (3 + 2), 16 s against 2 * (3 + 4).
        (("cost", 8), SwapChoice(Reason.CHEAPER)),
        (("cost", 6), SwapChoice(Reason.CHEAPER, 6, 10)),
        # Not what others hold; of four found, two blocks are left, which are not worth it.
        (("swap", 4, 2), SwapChoice(Reason.MODE, 6, 10)),
        (("cost", 4, 4), SwapChoice(Reason.CHEAPER)),
        (("swap", 4, 6), SwapChoice(Reason.CACHED)),
        # A pool with little room takes the front.
        (("swap", 4, 0, 3), SwapChoice(Reason.MODE, 4, 7)),
        (("cost", 4, 0, 2), SwapChoice(Reason.CHEAPER)),
        (("cost", 4, 0, 0), SwapChoice(Reason.POOL_FULL)),
    ],
)
def test_what_of_a_victim_is_copied(chosen: tuple[Any, ...], choice: SwapChoice) -> None:
    assert choose(*chosen) == choice


@pytest.mark.parametrize(
    ("mode", "num_blocks", "seconds"),
    [
        # The last block has two tokens and is computed again.
        ("cost", 1, 2.0),
        ("recompute", 3, 10.0),
        ("swap", 3, 2 * (3 + 2)),
        ("cost", 3, 10.0),
        ("cost", 11, 2 * (3 + 10)),
    ],
)
def test_the_price_of_losing_the_last_blocks(mode: str, num_blocks: int, seconds: float) -> None:
    assert a_preemption(mode, COSTS, block_size=4).seconds(VICTIM, num_blocks) == seconds


def test_a_trial_copies_what_is_believed_to_be_dearer_if_it_is_large_enough() -> None:
    dear = a_preemption("cost", LinearCosts(token_s=1.0, block_s=99.0), block_size=4)
    trial = replace(dear, tries_swap=True)
    assert dear.choose(VICTIM, 2, 0, 99) == SwapChoice(Reason.CHEAPER)
    assert trial.choose(VICTIM, 2, 0, 99) == SwapChoice(Reason.TRIAL, 2, 10)
    assert trial.choose(VICTIM, 3, 0, 99) == SwapChoice(Reason.CHEAPER)
    assert trial.choose(VICTIM, 2, 0, 0) == SwapChoice(Reason.POOL_FULL)


def tried(trials: Trials, num_victims: int) -> int:
    """So many victims, each computed again unless a trial is due; how many were copied."""
    num_tried = 0
    for _ in range(num_victims):
        is_due = trials.is_due
        num_tried += is_due
        trials.note(SwapChoice(Reason.TRIAL, 0, 8) if is_due else SwapChoice(Reason.CHEAPER))
    return num_tried


def test_trials_become_rarer_as_long_as_nothing_surprises() -> None:
    trials = Trials()
    assert tried(trials, 10 * (MIN_SPACING + 1)) == 10
    for _ in range(3):
        trials.observe(believed_s=1.0, actual_s=1.2)
    assert tried(trials, 8 * MIN_SPACING) == 0
    assert tried(trials, 1) == 1
    trials.observe(believed_s=1.0, actual_s=0.2)
    assert tried(trials, 10 * (MIN_SPACING + 1)) == 10


def test_what_is_never_chosen_for_its_cost_needs_no_trial() -> None:
    trials = Trials()
    for reason in (Reason.MODE, Reason.POOL_FULL, Reason.CACHED, Reason.NO_BLOCKS):
        for _ in range(2 * MIN_SPACING):
            trials.note(SwapChoice(reason))
    assert not trials.is_due


def test_copies_that_are_believed_five_times_too_dear_are_found_out() -> None:
    """Copying takes half of what computing takes; the profile says two and a half times."""
    truth = LinearCosts(token_s=1.0, block_s=1.0)
    costs = CorrectedCostModel(LinearCosts(token_s=1.0, block_s=5.0))
    trials, num_victims = Trials(), 0
    while True:
        num_victims += 1
        preemption = Preemption(Mode.COST, costs, block_size=4, tries_swap=trials.is_due)
        choice = preemption.choose(VICTIM, 2, 0, 99)
        if choice.num_blocks and choice.reason is Reason.CHEAPER:
            break
        trials.note(choice)
        if choice.num_blocks:
            trials.observe(costs.swap_out_s(8), truth.swap_out_s(8))
            costs.observe_swap_out(8, truth.swap_out_s(8))
            costs.observe_swap_in(8, truth.swap_in_s(8))
    assert num_victims <= CALIBRATION_OBSERVATIONS * (MIN_SPACING + 1)
