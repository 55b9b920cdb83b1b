"""Lists the problems of a cost profile, each with the key of the value that is wrong.

Types and limits of single values are those of `types`; here is what holds between
values: enough points, all of them growing, and a provenance that lets a reader check them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from itertools import pairwise

from pydantic import TypeAdapter, ValidationError

from cost_profiles.types import (
    CostProfile,
    Kind,
    ModelGeometry,
    Provenance,
    RecomputePoint,
    RecomputeSection,
    SwapSection,
)
from stream2llm.api.file_values import Problem, problems_in

SCHEMA = TypeAdapter(CostProfile)
# Fewer cannot tell a fixed cost, a linear and a quadratic part apart, and leave one to check by.
MIN_RECOMPUTE_POINTS = 4
MIN_SWAP_POINTS = 3


def problems_of(profile: CostProfile) -> list[Problem]:
    """Everything that is wrong; empty for a profile that can be used."""
    try:
        SCHEMA.validate_python(profile)
    except ValidationError as error:
        return list(in_values(error))
    return between_values(profile)


def in_values(error: ValidationError) -> Iterator[Problem]:
    """Returns pydantic's errors as problems of ours."""
    return problems_in(error)


def between_values(profile: CostProfile) -> list[Problem]:
    """Returns the problems between values that are each within their own limits."""
    return [
        *_of_model(profile.model, profile.tensor_parallel_size),
        *_of_recompute(profile.recompute),
        *_of_swap("swap_out", profile.swap_out),
        *_of_swap("swap_in", profile.swap_in),
    ]


def _of_model(model: ModelGeometry, tensor_parallel_size: int) -> Iterator[Problem]:
    heads, ranks = model.num_kv_heads, tensor_parallel_size
    if max(heads, ranks) % min(heads, ranks):
        text = f"{heads} KV heads cannot be shared evenly by {ranks} ranks"
        yield Problem("tensor_parallel_size", text)


def _of_recompute(section: RecomputeSection) -> Iterator[Problem]:
    yield from _of_provenance("recompute.provenance", section.provenance)
    yield from _enough("recompute.points", section.points, MIN_RECOMPUTE_POINTS)
    yield from _bad_chain(section.points)


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
    if provenance.kind is Kind.MODELLED:
        if not provenance.figures:
            yield Problem(f"{key}.figures", "a modelled section names what it is made from")
    elif not (provenance.machine or "").strip():
        yield Problem(f"{key}.machine", f"a section that is {provenance.kind} names its machine")


def _enough(key: str, points: Sequence[object], at_least: int) -> Iterator[Problem]:
    if len(points) < at_least:
        yield Problem(key, f"{len(points)} points, at least {at_least} are needed")
