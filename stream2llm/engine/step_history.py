"""How long an engine's step may take before the engine counts as hung, learned from its steps.

Pure. There must be no false alarm on a machine that is ten times slower for half a minute,
nor because of a step that takes as long as an earlier one did. Sizes are powers of two of
a step's number of tokens; what a smaller step took, a larger one may take as well.

A duration that came twice within the last 500 to 1,000 steps of its size is usual, and a
step may take `USUAL_FACTOR` times as long: a machine may become slower. The longest of all,
which may have been the compilation of a kernel, counts `LONGEST_FACTOR` times, and is never
forgotten. A size that is new, or was met once, may compile something.
"""

from __future__ import annotations

from heapq import nlargest

USUAL_FACTOR = 12.0
LONGEST_FACTOR = 2.0
# For the first steps of a size: time to compile kernels.
NEW_SIZE_LIMIT_S = 60.0
# No limit is higher, but for twice the longest step: vLLM itself gives up on a rank after 300 s.
MAX_LIMIT_S = 600.0
# Steps of a size after which the durations before the last ones are forgotten.
WINDOW_STEPS = 512
# The usual duration is the shortest of so many longest ones.
_NUM_TO_BE_USUAL = 2


class _Size:
    """The steps of one size."""

    def __init__(self, max_tokens: int) -> None:
        self.longest_s = 0.0
        self._max_tokens = max_tokens
        self._num_steps = 0
        # The longest durations of this window and of the one before, as they would be with
        # `max_tokens`.
        self._recent: list[float] = []
        self._before: list[float] = []

    def add(self, num_tokens: int, duration_s: float) -> None:
        self.longest_s = max(self.longest_s, duration_s)
        if self._num_steps == WINDOW_STEPS:
            self._num_steps, self._recent, self._before = 0, [], self._recent
        self._num_steps += 1
        full_s = duration_s * self._max_tokens / max(1, num_tokens)
        self._recent = nlargest(_NUM_TO_BE_USUAL, (*self._recent, full_s))

    @property
    def is_known(self) -> bool:
        """Whether there are enough steps to tell the usual from an exception."""
        return len(self._recent) + len(self._before) >= _NUM_TO_BE_USUAL

    @property
    def usual_s(self) -> float:
        """The longest duration that is no exception; the only one where there is one."""
        return nlargest(_NUM_TO_BE_USUAL, (*self._recent, *self._before))[-1]


class StepHistory:
    """The steps of one engine so far, as far as the limit depends on them."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}

    def add(self, num_tokens: int, duration_s: float) -> None:
        """Adds a step that has ended; one without tokens moves KV, or waits for it."""
        size = num_tokens.bit_length()
        if size not in self._sizes:
            self._sizes[size] = _Size(max_tokens=2**size)
        self._sizes[size].add(num_tokens, duration_s)

    def limit_s(self, num_tokens: int) -> float:
        """Returns how long a step of so many tokens may take."""
        size = num_tokens.bit_length()
        up_to = [seen for each, seen in self._sizes.items() if each <= size]
        longest_s = max((seen.longest_s for seen in up_to), default=0.0)
        usual_s = max((seen.usual_s for seen in up_to if seen.is_known), default=0.0)
        is_new = size not in self._sizes or not self._sizes[size].is_known
        if is_new:
            usual_s = max(usual_s, self._extrapolated_s(size))
        return max(
            NEW_SIZE_LIMIT_S if is_new else 0.0,
            min(MAX_LIMIT_S, USUAL_FACTOR * usual_s),
            LONGEST_FACTOR * longest_s,
        )

    def _extrapolated_s(self, size: int) -> float:
        """From the largest smaller size that has tokens, in proportion to them."""
        nearest = max((each for each in self._sizes if 0 < each < size), default=None)
        return (
            0.0 if nearest is None else self._sizes[nearest].usual_s * float(2 ** (size - nearest))
        )
