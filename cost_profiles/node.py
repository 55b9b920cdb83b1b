"""Finds the profile that a node starts from: a given one, a shipped one, or a modelled one.

The caller describes the node. A profile that an operator names must fit, and the
error says what differs; any other is a start, which online calibration improves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cost_profiles.load import ProfileError, find_profile, load_profile, load_profiles
from cost_profiles.rebase import rebase
from cost_profiles.roofline import TransformerShape, fallback_profile, is_known
from cost_profiles.types import CostProfile


@dataclass(frozen=True, slots=True)
class Node:
    """The properties of a node and its engine on which costs depend."""

    # As the device reports it; "cpu" for every CPU.
    device_name: str
    shape: TransformerShape
    tensor_parallel_size: int
    block_size: int
    # Token budget of one engine step.
    token_budget: int
    # Cores of a CPU engine; ignored for other devices.
    num_cpu_cores: int


class Start(NamedTuple):
    """A profile in the node's block size, and one line about its source."""

    profile: CostProfile
    reason: str


def start_for(
    node: Node, profile_path: str = "", *, shipped: Iterable[CostProfile] | None = None
) -> Start:
    """Returns the profile to start from.

    `profile_path` names a file, which must fit model and tensor parallel size, or a
    directory, of which the fitting file is taken if there is one; if it is empty, the
    shipped profiles are searched. If nothing fits, the profile is modelled. Raises
    ProfileError that names the file and what is wrong with it.
    """
    path = Path(profile_path).expanduser()
    if not profile_path:
        return _searched(node, "", shipped)
    if path.is_dir():
        of_directory = _found(node, load_profiles(path))
        if isinstance(of_directory, Start):
            return Start(of_directory.profile, f"{of_directory.reason}, from {path}")
        return _searched(node, f"in {path}: {of_directory}; ", shipped)
    return _given(node, load_profile(path), path)


def _given(node: Node, profile: CostProfile, path: Path) -> Start:
    differences = "; ".join(_differences(node, profile))
    if differences:
        raise ProfileError(f"{path}: does not fit this node: {differences}")
    kind, device = profile.recompute.provenance.kind, profile.accelerator.name
    reason = f"{kind} on {device}, from {path}"
    if not profile.accelerator.is_called(node.device_name):
        reason += f", though this device is {node.device_name!r}"
    return Start(rebase(profile, node.block_size), reason)


def _differences(node: Node, profile: CostProfile) -> Iterator[str]:
    """Yields what makes the numbers meaningless here. The device is the operator's choice."""
    here, there = node.shape.geometry, profile.model
    for key in ("num_layers", "num_kv_heads", "head_size", "dtype"):
        if getattr(here, key) != getattr(there, key):
            yield f"model.{key} is {getattr(there, key)}, {here.name} has {getattr(here, key)}"
    if node.tensor_parallel_size != profile.tensor_parallel_size:
        sizes = f"{profile.tensor_parallel_size}, the engine's is {node.tensor_parallel_size}"
        yield f"tensor_parallel_size is {sizes}"


def _searched(node: Node, tried: str, shipped: Iterable[CostProfile] | None) -> Start:
    found = _found(node, shipped)
    if isinstance(found, Start):
        return Start(found.profile, f"{tried}shipped: {found.reason}")
    return Start(_fallback(node), f"{tried}{found}; {_basis(node)}")


def _found(node: Node, profiles: Iterable[CostProfile] | None) -> Start | str:
    """Returns the profile that fits, or why there is none."""
    match = find_profile(
        node.device_name,
        node.shape.geometry,
        node.tensor_parallel_size,
        block_size=node.block_size,
        profiles=profiles,
    )
    return match.reason if match.profile is None else Start(match.profile, match.reason)


def _fallback(node: Node) -> CostProfile:
    return fallback_profile(
        node.device_name,
        node.shape,
        node.tensor_parallel_size,
        block_size=node.block_size,
        num_cpu_cores=node.num_cpu_cores,
        token_budget=node.token_budget,
    )


def _basis(node: Node) -> str:
    """Returns the source of the fallback, and how to get a better one."""
    if is_known(node.device_name):
        basis = "modelled from its datasheet"
    elif node.device_name.casefold().startswith("cpu"):
        basis = f"modelled from what {node.num_cpu_cores} cores usually do"
    else:
        basis = "modelled from a guess"
    return f"{basis} until observed times correct it (stream2llm profile measures one)"
