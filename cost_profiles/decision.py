"""Recompute or swap: the cheaper way to evict blocks and restore them.

Pure: the caller decides what to evict, this module computes the costs of exactly that
part, out and back. What the prefix cache would still have when the session returns need
not be computed again, so losing it costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pydantic, which commands of an installation without extras do not have
    from cost_profiles.types import Costs


class Action(StrEnum):
    """The way in which evicted KV comes back: computed again, or copied from the host."""

    RECOMPUTE = "recompute"
    SWAP = "swap"


class Mode(StrEnum):
    """An operator's choice: always one way, or the cheaper one."""

    RECOMPUTE = "recompute"
    SWAP = "swap"
    COST = "cost"


class Reason(StrEnum):
    """Why an action was taken."""

    # The mode leaves no choice.
    MODE = "mode"
    # No whole block is left to copy.
    NO_BLOCKS = "no_blocks"
    # Nothing would have to be computed again.
    CACHED = "cached"
    # The other way costs more, or as much.
    CHEAPER = "cheaper"
    # The host has no room; the caller of `cheaper` checks that.
    POOL_FULL = "pool_full"
    # Believed to cost more, but done once to measure it; see
    # prefill_worker/cost_calibration.py.
    TRIAL = "trial"


@dataclass(frozen=True, slots=True)
class Choice:
    """An action with the costs of both ways, for metrics and logs."""

    action: Action
    reason: Reason
    recompute_s: float
    # Out and back.
    swap_s: float


def cheaper(
    cost: Costs,
    from_token: int,
    to_token: int,
    num_blocks: int,
    mode: Mode = Mode.COST,
) -> Choice:
    """Chooses for an eviction of tokens [from, to) that frees `num_blocks`.

    A tie goes to recompute, which needs no host memory.
    """
    recompute_s = cost.recompute_s(from_token, to_token)
    swap_s = cost.swap_out_s(num_blocks) + cost.swap_in_s(num_blocks)
    action, reason = _choose(recompute_s, swap_s, num_blocks, mode)
    return Choice(action, reason, recompute_s, swap_s)


def _choose(
    recompute_s: float, swap_s: float, num_blocks: int, mode: Mode
) -> tuple[Action, Reason]:
    if mode is Mode.RECOMPUTE:
        return Action.RECOMPUTE, Reason.MODE
    if num_blocks == 0:
        return Action.RECOMPUTE, Reason.NO_BLOCKS
    if mode is Mode.SWAP:
        return Action.SWAP, Reason.MODE
    action = Action.SWAP if swap_s < recompute_s else Action.RECOMPUTE
    return action, Reason.CHEAPER
