"""Which profile a node starts from, and what it says about that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cost_profiles.load import ProfileError, save_profile
from cost_profiles.node import Node, start_for
from cost_profiles.roofline import TransformerShape
from cost_profiles.types import Accelerator, Kind
from tests.profiles import A_MODEL, a_profile

NODE = Node(
    device_name="Abacus 3000",
    shape=TransformerShape(A_MODEL, hidden_size=64, intermediate_size=128, num_query_heads=8),
    tensor_parallel_size=1,
    block_size=16,
    token_budget=256,
    num_cpu_cores=2,
)


def test_a_shipped_profile_is_found_and_rebased() -> None:
    start = start_for(replace(NODE, block_size=32), shipped=[a_profile()])
    assert start.profile.block_size == 32
    assert start.reason == (
        "shipped: measured on Abacus 3000, rebased from blocks of 16 tokens to 32"
    )


@pytest.mark.parametrize(
    ("device_name", "basis"),
    [
        ("NVIDIA L4", "modelled from its datasheet"),
        ("cpu", "modelled from what 2 cores usually do"),
        ("Slide Rule", "modelled from a guess"),
    ],
)
def test_without_one_it_starts_from_figures_and_says_why(device_name: str, basis: str) -> None:
    start = start_for(replace(NODE, device_name=device_name), shipped=[a_profile()])
    assert start.profile.recompute.provenance.kind is Kind.MODELLED
    assert start.profile.recompute.token_budget == 256
    assert start.profile.block_size == 16
    assert start.reason.startswith(f"no profile for the device '{device_name}'; {basis}")


def test_a_given_file_wins_over_shipped_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    save_profile(a_profile(accelerator=Accelerator("Slide Rule", ())), file)
    start = start_for(NODE, str(file), shipped=[a_profile()])
    assert start.profile.accelerator.name == "Slide Rule"
    assert start.reason == (
        f"measured on Slide Rule, from {file}, though this device is 'Abacus 3000'"
    )


def test_a_given_file_must_fit_and_every_difference_is_named(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    other = replace(A_MODEL, name="other", num_layers=3, dtype="float32")
    save_profile(a_profile(model=other, tensor_parallel_size=2), file)
    with pytest.raises(ProfileError) as raised:
        start_for(NODE, str(file))
    assert raised.value.message == (
        f"{file}: does not fit this node: model.num_layers is 3, tiny has 2; model.dtype is "
        "float32, tiny has bfloat16; tensor_parallel_size is 2, the engine's is 1"
    )


def test_a_given_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"nothing\.json: cannot be read"):
        start_for(NODE, str(tmp_path / "nothing.json"))


def test_of_a_directory_the_fitting_file_is_taken(tmp_path: Path) -> None:
    save_profile(a_profile(accelerator=Accelerator("Slide Rule", ())), tmp_path / "a.json")
    save_profile(a_profile(tensor_parallel_size=2), tmp_path / "b.json")
    save_profile(a_profile(), tmp_path / "c.json")
    start = start_for(NODE, str(tmp_path), shipped=[])
    assert start.profile == a_profile()
    assert start.reason == f"measured on Abacus 3000, from {tmp_path}"


def test_a_directory_without_a_fitting_file_leaves_the_shipped_ones(tmp_path: Path) -> None:
    save_profile(a_profile(tensor_parallel_size=2), tmp_path / "b.json")
    start = start_for(NODE, str(tmp_path), shipped=[a_profile()])
    assert start.profile == a_profile()
    assert start.reason.startswith(f"in {tmp_path}: profiles for 'Abacus 3000' are for tensor")
    assert start.reason.endswith("shipped: measured on Abacus 3000")
