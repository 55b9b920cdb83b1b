"""The length of a step that computes for open sessions alone. Pure.

No client waits for such a step, until a session is sealed during it and waits for its end. Short
steps cost throughput, because a part of each step's time is the same however little it computes.
That matters where much work waits, and there the steps are long.
"""

from __future__ import annotations

from typing import NamedTuple

from cost_profiles.types import Costs
from prefill_worker.inter_token import num_tokens_within

# What a full step has where the target allows it; more tokens save next to nothing.
FULL_TOKENS = 2048
# The least: with fewer, reading weights and context takes longer than a profile says.
MIN_TOKENS = 512
# The largest share of a step's time that its fixed part may have.
_MAX_FIXED_SHARE = 0.25
# With so many sessions that have work, a step is full.
_NUM_SESSIONS = 3
# With fewer it takes at least one part in so many of the tokens that wait.
_NUM_PARTS = 4


class Waiting(NamedTuple):
    """The work that waits."""

    num_sessions: int
    # All of theirs together.
    num_tokens: int


def num_open_tokens(waiting: Waiting, num_most: int, target_s: float, costs: Costs) -> int:
    """Returns the token budget of a step for open sessions, in [1, `num_most`].

    A full step has as many tokens as `target_s` seconds compute, by `costs`, of a context without
    tokens before it, up to FULL_TOKENS. A step has a third of that for each session with work, or a
    quarter of the tokens that wait, whichever is more, up to a full one. None has less than
    MIN_TOKENS, or than four times its fixed part computes. `num_most` is at least 1.
    """
    least_s = costs.step_fixed_s / _MAX_FIXED_SHARE
    least = max(num_tokens_within(least_s, 0, num_most, costs.recompute_s), MIN_TOKENS)
    in_time = num_tokens_within(target_s, 0, min(num_most, FULL_TOKENS), costs.recompute_s)
    full = max(in_time, least)
    shares = full * waiting.num_sessions // _NUM_SESSIONS
    wanted = max(shares, waiting.num_tokens // _NUM_PARTS, least)
    return min(wanted, full, num_most)
