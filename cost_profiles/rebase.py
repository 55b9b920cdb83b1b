"""A profile for another block size.

A copy is priced by its bytes: blocks of another size take as long for as many bytes.
That ignores the cost per block (small blocks are copied in more pieces), so a rebased
profile underestimates small blocks; online calibration corrects that. Recompute points
count tokens and stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cost_profiles.check import MIN_SWAP_POINTS
from cost_profiles.curve import swap_curve
from cost_profiles.types import CostProfile, SwapPoint, SwapSection


def rebase(profile: CostProfile, block_size: int) -> CostProfile:
    """Returns the same profile, counted in blocks of `block_size` tokens."""
    if block_size <= 0:
        raise ValueError(f"invalid block size: {block_size}")
    if block_size == profile.block_size:
        return profile
    return replace(
        profile,
        block_size=block_size,
        swap_out=_rebased(profile.swap_out, profile.block_size, block_size),
        swap_in=_rebased(profile.swap_in, profile.block_size, block_size),
    )


def _rebased(section: SwapSection, old_size: int, new_size: int) -> SwapSection:
    curve = swap_curve(section.points)
    old_counts = [point.num_blocks for point in section.points]
    points = tuple(
        SwapPoint(count, curve.at(count * new_size / old_size))
        for count in _counts(old_counts, old_size, new_size)
    )
    note = f"{section.provenance.note} Rebased from blocks of {old_size} tokens by bytes.".strip()
    return SwapSection(replace(section.provenance, note=note), points)


def _counts(old_counts: Iterable[int], old_size: int, new_size: int) -> list[int]:
    """Rounds counts up to whole new blocks; doubles the last one until there are enough."""
    counts = sorted({-(-count * old_size // new_size) for count in old_counts})
    while len(counts) < MIN_SWAP_POINTS:
        counts.append(2 * counts[-1])
    return counts
