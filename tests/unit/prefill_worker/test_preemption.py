"""What goes to the host, and what losing it costs."""

from __future__ import annotations

import pytest

from cost_profiles.decision import Reason
from prefill_worker.types import SwapChoice
from tests.builders import LinearCosts, a_preemption, a_request

pytestmark = pytest.mark.unit

# Blocks of four tokens: four seconds to compute, one to copy one way; three more for a copy.
COSTS = LinearCosts(token_s=1.0, block_s=1.0, copy_s=3.0)
# Ten full blocks, and two tokens in another.
VICTIM = a_request(known=50, computed=42, num_blocks=11)


def choose(mode: str, num_kept: int, num_found: int = 0, num_slots: int = 99) -> SwapChoice:
    preemption = a_preemption(mode, COSTS, block_size=4)
    return preemption.choose(VICTIM, num_kept, num_found, num_slots)


def test_only_full_blocks_are_copied() -> None:
    assert choose("swap", 7) == SwapChoice(Reason.MODE, 7, 10)
    assert choose("swap", 10) == SwapChoice(Reason.NO_BLOCKS)


def test_recompute_never_copies() -> None:
    assert choose("recompute", 0) == SwapChoice(Reason.MODE)


@pytest.mark.parametrize(
    ("num_evicted", "choice"),
    [
        # 8 s against 2 * (3 + 2), 16 s against 2 * (3 + 4).
        (2, SwapChoice(Reason.CHEAPER)),
        (4, SwapChoice(Reason.CHEAPER, 6, 10)),
    ],
)
def test_cost_decides_at_the_victims_own_size(num_evicted: int, choice: SwapChoice) -> None:
    assert choose("cost", 10 - num_evicted) == choice


def test_what_others_hold_is_not_copied() -> None:
    assert choose("swap", 4, num_found=2) == SwapChoice(Reason.MODE, 6, 10)
    # Two blocks are left, which are not worth it.
    assert choose("cost", 4, num_found=4) == SwapChoice(Reason.CHEAPER)
    assert choose("swap", 4, num_found=6) == SwapChoice(Reason.CACHED)


def test_a_pool_with_little_room_takes_the_front() -> None:
    assert choose("swap", 4, num_slots=3) == SwapChoice(Reason.MODE, 4, 7)
    assert choose("cost", 4, num_slots=2) == SwapChoice(Reason.CHEAPER)
    assert choose("cost", 4, num_slots=0) == SwapChoice(Reason.POOL_FULL)


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
