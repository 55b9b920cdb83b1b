"""Limits the prefill in steps in which answers wait for their next token. Pure.

A step computes the next token of every answer, and prefill beside them; all of them wait for
its end. What the answers alone take is learned from steps without prefill.
"""

from __future__ import annotations

from collections.abc import Callable

# The weight of one step in the mean: a few dozen steps are followed.
_GAIN = 0.1


def num_tokens_within(
    seconds: float, start: int, num_tokens: int, recompute_s: Callable[[int, int], float]
) -> int:
    """Returns how many of `num_tokens` tokens from `start` on are computed in that time.

    `recompute_s` gives the seconds to compute tokens [from, to).
    """
    if recompute_s(start, start + num_tokens) <= seconds:
        return num_tokens
    fits, too_many = 0, num_tokens
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if recompute_s(start, start + middle) <= seconds:
            fits = middle
        else:
            too_many = middle
    return fits


class InterTokenTarget:
    """The time between two tokens of an answer that an engine aims at."""

    def __init__(self, target_ms: int | None) -> None:
        """`target_ms` is in milliseconds; None: prefill may take all of a step."""
        self._target_s = None if target_ms is None else target_ms / 1000
        # Mean duration of steps that only decode.
        self._decode_s: float | None = None

    @property
    def prefill_s(self) -> float | None:
        """Seconds that prefill may take of a step beside answers; None: any."""
        if self._target_s is None:
            return None
        return max(self._target_s - (self._decode_s or 0.0), 0.0)

    def observe(self, num_decoding: int, num_computing: int, step_s: float) -> None:
        """Learns from a step that computed for so many sessions, some of which decode."""
        if not num_computing or num_decoding < num_computing:
            return
        before_s = step_s if self._decode_s is None else self._decode_s
        self._decode_s = before_s + _GAIN * (step_s - before_s)
