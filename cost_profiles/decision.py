"""Recompute or swap: the cheaper way to give up blocks and have them back.

Pure: the caller knows what is evicted, this module only prices it. Compared are
the costs of exactly that part, there and back. What the prefix cache would still
find when the session returns need not be computed again, so it is free to lose.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cost_profiles.types import Costs


class Action(StrEnum):
    """What becomes of evicted KV."""

    RECOMPUTE = "recompute"
    SWAP = "swap"


class Mode(StrEnum):
    """What an operator chose: one way always, or whichever costs less."""

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
    # There is no room on the host; whoever asks knows, `cheaper` does not.
    POOL_FULL = "pool_full"
    # Believed to cost more, and taken once to see whether it does; see
    # prefill_worker/trials.py.
    TRIAL = "trial"


@dataclass(frozen=True, slots=True)
class Choice:
    """An action with what both ways would cost, for metrics and for the reader of a log."""

    action: Action
    reason: Reason
    recompute_s: float
    # There and back.
    swap_s: float


def cheaper(
    cost: Costs,
    from_token: int,
    to_token: int,
    num_blocks: int,
    num_cached_tokens: int = 0,
    mode: Mode = Mode.COST,
) -> Choice:
    """Chooses for an eviction of tokens [from, to) that frees `num_blocks`.

    `num_cached_tokens` counts tokens of that range, from its start, that the
    prefix cache would still find. A tie goes to recompute: it needs no host memory.
    """
    if not 0 <= num_cached_tokens <= to_token - from_token:
        raise ValueError(f"{num_cached_tokens} cached tokens of [{from_token}, {to_token})")
    recompute_s = cost.recompute_s(from_token + num_cached_tokens, to_token)
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
    if recompute_s == 0:
        return Action.RECOMPUTE, Reason.CACHED
    action = Action.SWAP if swap_s < recompute_s else Action.RECOMPUTE
    return action, Reason.CHEAPER
