"""Plans what a profile run measures, and evaluates its times. Pure.

Recompute: runs from an empty context that fit into one step, and one long run of full
steps, each behind those before it. Swap: copies of blocks, doubling. Rounds of all
sizes are repeated while there is time, so that a disturbance affects one sample of
each size rather than all of one; the median of a size's samples counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles

from cost_profiles.check import MIN_RECOMPUTE_POINTS, MIN_SWAP_POINTS
from cost_profiles.types import RecomputePoint, SwapPoint
from stream2llm.api.errors import InvalidRequestError, UnavailableError

# In shorter runs the overhead of a step dominates.
MIN_RUN_TOKENS = 32


@dataclass(frozen=True, slots=True)
class RecomputePlan:
    """The runs of a recompute measurement; lengths in tokens."""

    # Runs from an empty context, in one step, growing; the last begins the long run.
    single_steps: tuple[int, ...]
    # Tokens of one step, and number of steps.
    token_budget: int
    num_steps: int

    @property
    def longest(self) -> int:
        """Tokens of the long run."""
        return self.token_budget * self.num_steps


def recompute_plan(token_budget: int, max_tokens: int) -> RecomputePlan:
    """Plans steps of `token_budget` in sessions of at most `max_tokens` (one is held back).

    Raises InvalidRequestError when there is no room for enough points.
    """
    token_budget = min(token_budget, max_tokens)
    singles = _halved(token_budget)
    num_steps = max_tokens // max(token_budget, 1)
    if len(singles) + num_steps - 1 < MIN_RECOMPUTE_POINTS:
        raise InvalidRequestError(
            f"sessions of at most {max_tokens} tokens in steps of {token_budget} are too short to"
            " measure: raise max_model_len, or the KV memory",
            field="engine.max_model_len",
        )
    return RecomputePlan(singles, token_budget, num_steps)


def _halved(size: int) -> tuple[int, ...]:
    sizes = []
    while size >= MIN_RUN_TOKENS:
        sizes.append(size)
        size //= 2
    return tuple(reversed(sizes))


def swap_sizes(max_blocks: int) -> tuple[int, ...]:
    """Returns numbers of blocks: 1, 2, 4 and so on up to `max_blocks`.

    Raises InvalidRequestError when there is no room for enough of them.
    """
    sizes = tuple(1 << power for power in range(max_blocks.bit_length()))
    if len(sizes) < MIN_SWAP_POINTS:
        raise InvalidRequestError(
            f"copies of at most {max_blocks} blocks are too small to measure:"
            " raise the KV memory, or lower the block size"
        )
    return sizes


class Samples:
    """Seconds by size."""

    def __init__(self) -> None:
        self._seconds: dict[int, list[float]] = defaultdict(list)

    def add(self, size: int, seconds: float) -> None:
        """Adds a measurement."""
        self._seconds[size].append(seconds)

    def medians(self) -> dict[int, float]:
        """Returns the median by size, in growing order."""
        return {size: median(self._seconds[size]) for size in sorted(self._seconds)}

    @property
    def num_rounds(self) -> tuple[int, int]:
        """Returns the fewest and the most samples that a size has."""
        counts = [len(each) for each in self._seconds.values()]
        return min(counts), max(counts)

    @property
    def spreads(self) -> list[float]:
        """Returns for each size the interquartile range as a share of the median."""
        return [_middle_half(each) / median(each) for each in self._seconds.values()]


def _middle_half(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return upper - lower


def recompute_points(
    from_nothing: Mapping[int, float], behind: Mapping[int, float], token_budget: int
) -> tuple[RecomputePoint, ...]:
    """Returns points of medians: runs from nothing by length, steps by the context before them.

    The first full step is both a run from nothing and the start of the long run. It
    stays as measured, and those below it are made to grow.
    """
    grown = growing(from_nothing)
    points = [RecomputePoint(size, 0, seconds) for size, seconds in grown.items()]
    points += [
        RecomputePoint(token_budget, context, _rounded(seconds))
        for context, seconds in sorted(behind.items())
    ]
    _require_enough(points, MIN_RECOMPUTE_POINTS, "recompute")
    return tuple(points)


def swap_points(medians: Mapping[int, float]) -> tuple[SwapPoint, ...]:
    """Returns points of medians by number of blocks."""
    points = [SwapPoint(size, seconds) for size, seconds in growing(medians).items()]
    _require_enough(points, MIN_SWAP_POINTS, "swap")
    return tuple(points)


def _require_enough(points: Sequence[object], at_least: int, what: str) -> None:
    if len(points) < at_least:
        raise UnavailableError(
            f"{what}: only {len(points)} sizes took measurably longer than smaller ones,"
            f" {at_least} are needed; measure again, for longer or on a quieter machine",
            reason="TOO_NOISY",
        )


def growing(seconds_by_size: Mapping[int, float]) -> dict[int, float]:
    """Makes a curve strictly growing: isotonic regression, then one point per plateau.

    Where a larger size took no longer than a smaller one, both get their mean
    (pool adjacent violators). Such a plateau keeps its smallest size, because
    it is a fixed cost, which that size pays in full; the last one keeps its
    largest, so that the curve reaches as far as was measured.
    """
    plateaus: list[dict[int, float]] = []
    for size, seconds in sorted(seconds_by_size.items()):
        plateaus.append({size: seconds})
        while len(plateaus) > 1 and _mean(plateaus[-1]) <= _mean(plateaus[-2]):
            last = plateaus.pop()
            plateaus[-1] |= last
    ends = [min(each) for each in plateaus[:-1]] + [max(each) for each in plateaus[-1:]]
    return {size: _mean(each) for size, each in zip(ends, plateaus, strict=True)}


def _mean(plateau: Mapping[int, float]) -> float:
    # Rounded here, so that rounding cannot make distinct plateaus equal.
    return _rounded(fmean(plateau.values()))


def note_of(what: str, samples: Iterable[Samples]) -> str:
    """Describes how the points of a section were made, for its provenance."""
    all_samples = [each for each in samples if each.spreads]
    rounds = [each.num_rounds for each in all_samples]
    fewest, most = min(low for low, _ in rounds), max(high for _, high in rounds)
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    return (
        f"{what}. Medians of {count} samples a size, the middle half of which typically spans"
        f" {100 * typical_spread(all_samples):.0f} %; made to grow by isotonic regression, sizes that"
        " took equally long being one point."
    )


def typical_spread(samples: Iterable[Samples]) -> float:
    """Returns the median of all sizes' spreads: the device's noise, as a share."""
    return median(spread for each in samples for spread in each.spreads)


def _rounded(seconds: float) -> float:
    """Rounds to four significant digits: the rest is noise."""
    return float(f"{seconds:.4g}")
