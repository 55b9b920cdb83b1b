"""Files that are refused, with the file and the key; and the profile that fits a node."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cost_profiles.load import (
    ProfileError,
    dump_profile,
    find_profile,
    load_profile,
    load_profiles,
    parse_profile,
    save_profile,
)
from cost_profiles.types import Accelerator, Figure, Kind
from tests.profiles import A_MEASUREMENT, A_MODEL, a_profile, a_recompute, a_swap

Change = Callable[[dict[str, Any]], object]


def a_file_with(change: Change) -> str:
    plain = json.loads(dump_profile(a_profile()))
    change(plain)
    return json.dumps(plain)


def a_point(plain: dict[str, Any], section: str, index: int) -> dict[str, Any]:
    return plain[section]["points"][index]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "abacus.json"
    save_profile(a_profile(), path)
    assert load_profile(path) == a_profile()
    assert load_profiles(tmp_path) == [a_profile()]


def test_a_point_takes_one_line() -> None:
    lines = dump_profile(a_profile()).splitlines()
    assert sum("num_blocks" in line for line in lines) == 6
    assert '      {"num_blocks": 1, "seconds": 0.002},' in lines


CHANGES: list[tuple[Change, str]] = [
    (lambda p: p.pop("model"), "model: is missing"),
    (lambda p: p["model"].pop("head_size"), "model.head_size: is missing"),
    (lambda p: p.update(colour="red"), "colour: unknown key"),
    (lambda p: p["swap_in"].update(colour="red"), "swap_in.colour: unknown key"),
    (lambda p: p.update(block_size="16"), "block_size: Input should be a valid integer"),
    (lambda p: p["units"].update(time="ms"), "units.time: Input should be 's'"),
    (lambda p: p["model"].update(dtype="int4"), "model.dtype: Input should be 'bfloat16'"),
    (lambda p: p.update(schema_version=1), "schema_version: Input should be 2 (got 1)"),
    (lambda p: p.update(block_size=0), "block_size: Input should be greater than 0 (got 0)"),
    (lambda p: p["accelerator"].update(name=" "), "accelerator.name: String should match pattern '\\S' (got ' ')"),
    (lambda p: p.update(tensor_parallel_size=3), "tensor_parallel_size: 4 KV heads cannot be shared evenly by 3 ranks"),
    (
        lambda p: p["recompute"].update(points=p["recompute"]["points"][:3]),
        "recompute.points: 3 points, at least 4 are needed",
    ),
    (
        lambda p: p["swap_out"].update(points=p["swap_out"]["points"][1:]),
        "swap_out.points: 2 points, at least 3 are needed",
    ),
    (
        lambda p: a_point(p, "recompute", 2).update(seconds=0.02),
        "recompute.points.2.seconds: not monotone: [0, 400) would take 0.02 s, "
        "[0, 200) takes 0.02 s",
    ),
    (
        lambda p: a_point(p, "recompute", 2).update(num_tokens=200),
        "recompute.points.2.num_tokens: not monotone: ends at 200, the point before it at 200",
    ),
    (
        lambda p: a_point(p, "recompute", 3).update(num_context_tokens=150),
        "recompute.points.3.num_context_tokens: no earlier point ends at 150",
    ),
    (
        lambda p: a_point(p, "recompute", 0).update(seconds=-1),
        "recompute.points.0.seconds: Input should be greater than 0 (got -1)",
    ),
    (
        lambda p: a_point(p, "swap_in", 1).update(num_blocks=1),
        "swap_in.points.1.num_blocks: not monotone: 1 comes after 1",
    ),
    (
        lambda p: a_point(p, "swap_in", 2).update(seconds=0.01),
        "swap_in.points.2.seconds: not monotone: 0.01 s comes after 0.01 s",
    ),
    (
        lambda p: p["recompute"]["provenance"].update(machine=None),
        "recompute.provenance.machine: a section that is measured names its machine",
    ),
    (
        lambda p: p["recompute"]["provenance"].update(kind="modelled"),
        "recompute.provenance.figures: a modelled section names what it is made from",
    ),
    (
        lambda p: p["swap_in"]["provenance"].update(when="yesterday"),
        "swap_in.provenance.when: not a date like 2026-11-22: 'yesterday'",
    ),
    (
        lambda p: p["swap_in"]["provenance"].update(command=""),
        "swap_in.provenance.command: String should match pattern",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=[text for _, text in CHANGES])
def test_a_file_is_refused_by_name_and_key(change: Change, expected: str) -> None:
    with pytest.raises(ProfileError) as caught:
        parse_profile(a_file_with(change), source="node7.json")
    assert caught.value.message.startswith("node7.json: ")
    assert expected in caught.value.message


MODELLED = replace(A_MEASUREMENT, kind=Kind.MODELLED, figures=(Figure("peak", 1.0, "FLOP/s", " "),))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(
            dump_profile(a_profile()).replace("0.04", "Infinity"),
            r"node7\.json: recompute\.points\.2\.seconds",
            id="infinity-is-no-duration",
        ),
        pytest.param(
            dump_profile(a_profile(swap_in=a_swap(provenance=MODELLED))),
            r"swap_in\.provenance\.figures\.0\.source: String should match",
            id="a-figure-without-source",
        ),
        pytest.param(
            a_file_with(lambda p: p.update(block_size=0, schema_version=9)),
            r"schema_version: .*; block_size: ",
            id="all-problems-at-once",
        ),
        pytest.param(dump_profile(a_profile())[:100], r"node7\.json: not JSON: ", id="half"),
    ],
)
def test_a_text_that_is_no_profile_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "node7.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=problem):
        load_profile(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.json: cannot be read"):
        load_profile(tmp_path / "none.json")


def test_a_profile_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    with pytest.raises(ProfileError, match=r"bad\.json: block_size"):
        save_profile(a_profile(block_size=-1), path)
    assert not path.exists()


def test_a_profile_is_found_by_any_name_the_device_reports() -> None:
    profile = a_profile(accelerator=Accelerator("NVIDIA A100-SXM4-80GB", ("A100 80G",)))
    for name in ("nvidia a100 sxm4 80gb", "A100-80G"):
        assert find_profile(name, A_MODEL, 1, profiles=[profile]).profile == profile


L4 = Accelerator("NVIDIA L4", ())


@pytest.mark.parametrize(
    ("name", "model", "num_ranks", "there_is", "reason"),
    [
        # It only begins alike.
        ("NVIDIA L40", {}, 1, {"accelerator": L4}, "no profile for the device 'NVIDIA L40'"),
        (
            "abacus",
            {"num_layers": 3, "dtype": "float32"},
            1,
            {},
            ": tiny has 2 layers (here 3), dtype bfloat16 (here float32)",
        ),
        (
            "abacus",
            {},
            4,
            {"tensor_parallel_size": 2},
            "profiles for 'abacus' are for tensor parallel sizes [2], not 4",
        ),
    ],
    ids=["device", "geometry", "ranks"],
)
def test_what_is_no_match_says_what_there_is(
    name: str, model: dict[str, Any], num_ranks: int, there_is: dict[str, Any], reason: str
) -> None:
    profiles = [a_profile(**there_is)]
    found = find_profile(name, replace(A_MODEL, **model), num_ranks, profiles=profiles)
    assert found.profile is None
    assert found.reason.endswith(reason)


def test_a_fine_tune_uses_the_profile_of_its_base() -> None:
    found = find_profile("abacus", replace(A_MODEL, name="tuned"), 1, profiles=[a_profile()])
    assert found.profile == a_profile()
    assert found.reason.endswith("of tiny, whose KV has the same geometry")


def test_the_models_own_profile_goes_before_that_of_another() -> None:
    other = a_profile(model=replace(A_MODEL, name="other"))
    assert find_profile("abacus", A_MODEL, 1, profiles=[other, a_profile()]).profile == a_profile()


def test_what_was_measured_goes_before_a_microbenchmark() -> None:
    probe = replace(A_MEASUREMENT, kind=Kind.MICROBENCHMARK)
    quick = a_profile(recompute=a_recompute(provenance=probe))
    found = find_profile("abacus", A_MODEL, 1, profiles=[quick, a_profile()])
    assert found == (a_profile(), "measured on Abacus 3000")


def test_another_block_size_is_rebased() -> None:
    found = find_profile("abacus", A_MODEL, 1, block_size=32, profiles=[a_profile(block_size=16)])
    assert found.profile.block_size == 32
    assert found.reason.endswith("rebased from blocks of 16 tokens to 32")
