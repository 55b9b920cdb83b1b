"""What must hold of a profile's numbers, each problem with the key it is found at.

Types and unknown keys are `load`'s; here is what a schema cannot say: enough
points, all of them growing, and a provenance that lets a reader check them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from itertools import pairwise
from typing import NamedTuple

from cost_profiles.types import (
    SCHEMA_VERSION,
    CostProfile,
    Kind,
    ModelGeometry,
    Provenance,
    RecomputePoint,
    RecomputeSection,
    SwapSection,
)

# Fewer cannot tell a fixed cost, a linear and a quadratic part apart, and leave one to check by.
MIN_RECOMPUTE_POINTS = 4
MIN_SWAP_POINTS = 3


class Problem(NamedTuple):
    """Something wrong at a dotted key, such as `swap_in.points.3.seconds`."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


def problems_of(profile: CostProfile) -> list[Problem]:
    """Everything that is wrong; empty for a profile that can be used."""
    return [
        *_of_head(profile),
        *_of_recompute(profile.recompute),
        *_of_swap("swap_out", profile.swap_out),
        *_of_swap("swap_in", profile.swap_in),
    ]


def _of_head(profile: CostProfile) -> Iterator[Problem]:
    if profile.schema_version != SCHEMA_VERSION:
        text = f"this release reads version {SCHEMA_VERSION}, not {profile.schema_version}"
        yield Problem("schema_version", text)
    if not profile.accelerator.name.strip():
        yield Problem("accelerator.name", "is empty")
    yield from _positive("tensor_parallel_size", profile.tensor_parallel_size)
    yield from _positive("block_size", profile.block_size)
    yield from _of_model(profile.model, profile.tensor_parallel_size)


def _of_model(model: ModelGeometry, tensor_parallel_size: int) -> Iterator[Problem]:
    yield from _positive("model.num_layers", model.num_layers)
    yield from _positive("model.num_kv_heads", model.num_kv_heads)
    yield from _positive("model.head_size", model.head_size)
    heads, ranks = model.num_kv_heads, tensor_parallel_size
    if min(heads, ranks) > 0 and max(heads, ranks) % min(heads, ranks):
        text = f"{heads} KV heads cannot be shared evenly by {ranks} ranks"
        yield Problem("tensor_parallel_size", text)


def _of_recompute(section: RecomputeSection) -> Iterator[Problem]:
    yield from _of_provenance("recompute.provenance", section.provenance)
    yield from _positive("recompute.token_budget", section.token_budget)
    yield from _enough("recompute.points", section.points, MIN_RECOMPUTE_POINTS)
    bad_values = list(_bad_recompute_values(section.points))
    yield from bad_values or _bad_chain(section.points)


def _bad_recompute_values(points: Sequence[RecomputePoint]) -> Iterator[Problem]:
    for index, point in enumerate(points):
        key = f"recompute.points.{index}"
        yield from _positive(f"{key}.num_tokens", point.num_tokens)
        yield from _positive(f"{key}.seconds", point.seconds)
        if point.num_context_tokens < 0:
            text = f"must be at least 0, is {point.num_context_tokens}"
            yield Problem(f"{key}.num_context_tokens", text)


def _bad_chain(points: Sequence[RecomputePoint]) -> Iterator[Problem]:
    """Every point has to carry on the curve that those before it make."""
    seconds_to, last_end = {0: 0.0}, 0
    for index, point in enumerate(points):
        key = f"recompute.points.{index}"
        if point.num_context_tokens not in seconds_to:
            text = f"no earlier point ends at {point.num_context_tokens}"
            yield Problem(f"{key}.num_context_tokens", text)
            return
        seconds = seconds_to[point.num_context_tokens] + point.seconds
        if point.end <= last_end:
            text = f"not monotone: ends at {point.end}, the point before it at {last_end}"
            yield Problem(f"{key}.num_tokens", text)
            return
        if seconds <= seconds_to[last_end]:
            text = (
                f"not monotone: [0, {point.end}) would take {seconds:.6g} s, "
                f"[0, {last_end}) takes {seconds_to[last_end]:.6g} s"
            )
            yield Problem(f"{key}.seconds", text)
        seconds_to[point.end], last_end = seconds, point.end


def _of_swap(name: str, section: SwapSection) -> Iterator[Problem]:
    yield from _of_provenance(f"{name}.provenance", section.provenance)
    yield from _enough(f"{name}.points", section.points, MIN_SWAP_POINTS)
    for index, point in enumerate(section.points):
        yield from _positive(f"{name}.points.{index}.num_blocks", point.num_blocks)
        yield from _positive(f"{name}.points.{index}.seconds", point.seconds)
    for index, (before, point) in enumerate(pairwise(section.points), start=1):
        key = f"{name}.points.{index}"
        if point.num_blocks <= before.num_blocks:
            text = f"not monotone: {point.num_blocks} comes after {before.num_blocks}"
            yield Problem(f"{key}.num_blocks", text)
        if point.seconds <= before.seconds:
            text = f"not monotone: {point.seconds:.6g} s comes after {before.seconds:.6g} s"
            yield Problem(f"{key}.seconds", text)


def _of_provenance(key: str, provenance: Provenance) -> Iterator[Problem]:
    try:
        date.fromisoformat(provenance.when)
    except ValueError:
        yield Problem(f"{key}.when", f"not a date like 2026-11-22: {provenance.when!r}")
    if not provenance.command.strip():
        yield Problem(f"{key}.command", "is empty: what was run?")
    if provenance.kind is Kind.MODELLED:
        if not provenance.figures:
            yield Problem(f"{key}.figures", "a modelled section names what it is made from")
    elif not (provenance.machine or "").strip():
        yield Problem(f"{key}.machine", f"a section that is {provenance.kind} names its machine")
    for index, figure in enumerate(provenance.figures):
        if not figure.source.strip():
            yield Problem(f"{key}.figures.{index}.source", f"{figure.name} has no source")


def _positive(key: str, value: float) -> Iterator[Problem]:
    if not value > 0:
        yield Problem(key, f"must be above 0, is {value:g}")


def _enough(key: str, points: Sequence[object], at_least: int) -> Iterator[Problem]:
    if len(points) < at_least:
        yield Problem(key, f"{len(points)} points, at least {at_least} are needed")
