"""Decides which sessions leave a worker that drains, and which end there. Pure.

    before the first token -> leaves_prefill
    after it               -> leaves_decode

Both compare what the session has left with the time that the drain gives it. They say what
is wanted: a session leaves only when another worker can be used.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """What a session has at its prefill worker; counts are of tokens."""

    is_sealed: bool
    num_computed: int
    num_left: int
    # The worker's speed for all its sessions together; None: not known.
    tokens_per_s: float | None = None


def leaves_prefill(work: PrefillWork, left_s: float) -> bool:
    """Whether the session is computed again at another worker, rather than ended here.

    An open one always is: how long it stays open is its client's choice, and the more comes,
    the more there is to compute again. A sealed one costs the other worker all that is
    computed here, and its client waits for that: so it stays while less is left than would
    be computed again, unless even that takes more than `left_s`.
    """
    if not work.is_sealed or work.num_left > work.num_computed:
        return True
    return work.tokens_per_s is not None and work.num_left > work.tokens_per_s * left_s


def leaves_decode(num_left_tokens: int, token_s: float | None, left_s: float) -> bool:
    """Whether an answer that may have so many tokens more goes on at another worker.

    `token_s` is what a token takes here, None where that is not known. Where its longest end
    is too late the answer leaves now: at the end of the time all of them would leave
    together, and the worker would be held up for nothing until then.
    """
    return token_s is not None and num_left_tokens * token_s > left_s
