"""Limits the share of time that KV prefetch takes from decoding requests. Pure.

A fetch costs decoding requests memory bandwidth and cores, so their steps get
longer. By how much is measured: steps during a fetch against steps of as many
requests without one. A fetch that took `t` seconds and makes steps longer by a
fraction `f` costs `f * t`; the next one begins when the decode time since then
makes that at most the configured share. Idle decode workers are not limited.
"""

from __future__ import annotations

# Weight of one observation in the running mean.
_WEIGHT = 0.1
# A fetch is never assumed to be free, because measurements are noisy; before the
# first measurement it is assumed to stop decoding altogether.
_LEAST_SLOWDOWN = 0.02
_MOST_SLOWDOWN = 1.0


class FetchPace:
    """The pace of one worker's fetches. Times are seconds of one monotonic clock."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        # The fraction by which a fetch lengthens concurrent steps, as far as is known.
        self._slowdown = _MOST_SLOWDOWN
        # Mean seconds of a step without a fetch, by the number of its requests.
        self._step_s: dict[int, float] = {}
        self._next_s = 0.0

    def may_begin(self, now_s: float, num_decoding: int) -> bool:
        """Returns whether a KV fetch may begin at `now_s`, beside `num_decoding` decoding requests."""
        return not num_decoding or now_s >= self._next_s

    def note_step(self, step_s: float, num_decoding: int, *, is_fetching: bool) -> None:
        """A step of `num_decoding` requests took `step_s`, beside a fetch or not."""
        alone_s = self._step_s.get(num_decoding)
        if not is_fetching:
            self._step_s[num_decoding] = _mean(alone_s, step_s)
        elif alone_s:
            longer = min(max(step_s / alone_s - 1.0, _LEAST_SLOWDOWN), _MOST_SLOWDOWN)
            self._slowdown = _mean(self._slowdown, longer)

    def note_fetch(self, began_s: float, ended_s: float) -> None:
        """A fetch has ended."""
        cost_s = (ended_s - began_s) * self._slowdown
        self._next_s = max(self._next_s, began_s + cost_s / self._max_share)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
