"""Profiles in files: reads, writes, and finds the one for a node.

A file is refused as a whole, and the error names the file and every wrong key. The key
order of a written file is that of `types`, so that generating one again gives the same
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from cost_profiles.check import SCHEMA, between_values, in_values, problems_of
from cost_profiles.rebase import rebase
from cost_profiles.types import CostProfile, Kind, ModelGeometry
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.file_values import Problem

# Profiles measured through the engine are preferred.
_TRUST = (Kind.MEASURED, Kind.MICROBENCHMARK, Kind.MODELLED)


class ProfileError(InvalidRequestError):
    """A profile cannot be used; the message names file and keys."""


def load_profile(path: Path) -> CostProfile:
    """Reads and checks one file; raises ProfileError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: cannot be read: {error}") from error
    return parse_profile(text, source=str(path))


def parse_profile(text: str, *, source: str) -> CostProfile:
    """Parses and checks the JSON of one profile; `source` names it in errors."""
    try:
        profile = SCHEMA.validate_json(text)
    except ValidationError as error:
        raise _error(source, list(in_values(error))) from error
    if problems := between_values(profile):
        raise _error(source, problems)
    return profile


def dump_profile(profile: CostProfile) -> str:
    """Returns the text of a profile's file: a line per point, so that diffs are readable."""
    plain = asdict(profile)
    rows: list[str] = []
    for section in ("recompute", "swap_out", "swap_in"):
        points = plain[section]["points"]
        plain[section]["points"] = [f"@{len(rows) + index}@" for index in range(len(points))]
        rows += [json.dumps(point) for point in points]
    text = json.dumps(plain, indent=2, ensure_ascii=False)
    for index, row in enumerate(rows):
        text = text.replace(f'"@{index}@"', row, 1)
    return text + "\n"


def save_profile(profile: CostProfile, path: Path) -> None:
    """Writes a profile; refuses one that could not be read back."""
    if problems := problems_of(profile):
        raise _error(str(path), problems)
    path.write_text(dump_profile(profile), encoding="utf-8")


def load_profiles(directory: Path) -> list[CostProfile]:
    """Returns every profile of a directory, by file name."""
    return [load_profile(path) for path in sorted(directory.glob("*.json"))]


def shipped_profiles() -> list[CostProfile]:
    """Returns the profiles of the package's own data directory."""
    with resources.as_file(resources.files("cost_profiles") / "data") as directory:
        return load_profiles(directory)


def shipped_profile(name: str) -> CostProfile:
    """Returns the shipped profile of a file name without .json; raises ProfileError."""
    with resources.as_file(resources.files("cost_profiles") / "data") as directory:
        path = directory / f"{name}.json"
        if not path.is_file():
            known = ", ".join(sorted(each.stem for each in directory.glob("*.json")))
            raise ProfileError(f"{name!r} is not a shipped profile; there are {known}")
        return load_profile(path)


class Match(NamedTuple):
    """The profile for a node, or None; `reason` is for a log line."""

    profile: CostProfile | None
    reason: str


def find_profile(
    device_name: str,
    model: ModelGeometry,
    tensor_parallel_size: int,
    *,
    block_size: int | None = None,
    profiles: Iterable[CostProfile] | None = None,
) -> Match:
    """Finds a profile by device, KV geometry and tensor parallel size; None when none fits.

    Among those that fit, the same model name comes first (another model with this KV
    geometry swaps equally but computes differently), then measured ones. A profile with
    another block size fits too, and is rebased.
    """
    known = list(shipped_profiles() if profiles is None else profiles)
    of_device = [profile for profile in known if profile.accelerator.is_called(device_name)]
    if not of_device:
        return Match(None, f"no profile for the device {device_name!r}")
    of_model = [profile for profile in of_device if profile.model.has_kv_like(model)]
    if not of_model:
        others = "; ".join(sorted({_differences(profile.model, model) for profile in of_device}))
        return Match(None, f"no profile for {device_name!r} is of a model like this: {others}")
    fitting = [p for p in of_model if p.tensor_parallel_size == tensor_parallel_size]
    if not fitting:
        sizes = sorted({profile.tensor_parallel_size for profile in of_model})
        text = f"profiles for {device_name!r} are for tensor parallel sizes {sizes}"
        return Match(None, f"{text}, not {tensor_parallel_size}")
    best = min(fitting, key=lambda profile: _preference(profile, model))
    return _matched(best, model, block_size)


# Figures of a model that its KV depends on, and their words.
_FIGURES = {
    "num_layers": "{} layers",
    "num_kv_heads": "{} KV heads",
    "head_size": "heads of size {}",
    "dtype": "dtype {}",
}


def _differences(known: ModelGeometry, model: ModelGeometry) -> str:
    """Says in what the KV of a known model is unlike that of this one."""
    pairs = {name: (getattr(known, name), getattr(model, name)) for name in _FIGURES}
    unlike = [
        f"{_FIGURES[name].format(there)} (here {here})"
        for name, (there, here) in pairs.items()
        if there != here
    ]
    return f"{known.name} has {', '.join(unlike)}"


def _preference(profile: CostProfile, model: ModelGeometry) -> tuple[bool, int, int]:
    kinds = (profile.recompute.provenance.kind, profile.swap_out.provenance.kind)
    other_name = profile.model.name.casefold() != model.name.casefold()
    return (other_name, _TRUST.index(kinds[0]), _TRUST.index(kinds[1]))


def _matched(profile: CostProfile, model: ModelGeometry, block_size: int | None) -> Match:
    reason = f"{profile.recompute.provenance.kind} on {profile.accelerator.name}"
    if profile.model.name.casefold() != model.name.casefold():
        reason += f", of {profile.model.name}, whose KV has the same geometry"
    if block_size is not None and block_size != profile.block_size:
        reason += f", rebased from blocks of {profile.block_size} tokens to {block_size}"
        profile = rebase(profile, block_size)
    return Match(profile, reason)


def _error(source: str, problems: Sequence[Problem]) -> ProfileError:
    return ProfileError(f"{source}: {'; '.join(map(str, problems))}", field=problems[0].key or None)
