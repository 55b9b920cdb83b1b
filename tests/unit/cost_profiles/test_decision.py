"""Recompute or swap, with the reason."""

from __future__ import annotations

import pytest

from cost_profiles.decision import Action, Choice, Mode, Reason, cheaper
from tests.profiles import FlatCosts

# A token costs 1 ms; a block 10 ms each way, that is 20 tokens.
COST = FlatCosts(per_token_s=0.001, per_block_s=0.01)


@pytest.mark.parametrize(
    ("num_blocks", "action", "swap_s"), [(4, Action.SWAP, 0.08), (6, Action.RECOMPUTE, 0.12)]
)
def test_the_cheaper_way_is_taken(num_blocks: int, action: Action, swap_s: float) -> None:
    choice = cheaper(COST, 0, 100, num_blocks)
    assert choice == Choice(action, Reason.CHEAPER, recompute_s=0.1, swap_s=swap_s)


def test_a_tie_needs_no_host_memory() -> None:
    assert cheaper(COST, 0, 80, num_blocks=4).action is Action.RECOMPUTE


@pytest.mark.parametrize(
    ("mode", "expected"), [(Mode.RECOMPUTE, Action.RECOMPUTE), (Mode.SWAP, Action.SWAP)]
)
@pytest.mark.parametrize("num_blocks", [1, 99])
def test_a_mode_that_leaves_no_choice_says_so(
    mode: Mode, expected: Action, num_blocks: int
) -> None:
    choice = cheaper(COST, 0, 100, num_blocks, mode=mode)
    assert (choice.action, choice.reason) == (expected, Reason.MODE)


def test_without_a_whole_block_there_is_nothing_to_swap() -> None:
    choice = cheaper(COST, 0, 5, num_blocks=0, mode=Mode.SWAP)
    assert (choice.action, choice.reason) == (Action.RECOMPUTE, Reason.NO_BLOCKS)
