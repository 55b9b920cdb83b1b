"""Hypothesis tries the same examples every time, unless random ones are requested."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.examples import TIMES_WHEN_RANDOM, examples

ROOT = Path(__file__).parents[2]


@pytest.fixture
def profile(request: pytest.FixtureRequest) -> Iterator[None]:
    """Loads the profile that the parameter names; afterwards it is as before."""
    before = settings.get_current_profile_name()
    settings.load_profile(request.param)
    yield
    settings.load_profile(before)


@pytest.mark.parametrize("profile", ["fixed"], indirect=True)
def test_examples_are_fixed_by_default(profile: None) -> None:
    assert (settings().derandomize, settings().deadline) == (True, None)
    assert (examples(10).derandomize, examples(10).max_examples) == (True, 10)


@pytest.mark.parametrize("profile", ["random"], indirect=True)
def test_examples_are_fresh_and_more_when_asked_for(profile: None) -> None:
    found = examples(10)
    assert (found.derandomize, found.print_blob, found.deadline) == (False, True, None)
    assert found.max_examples == 10 * TIMES_WHEN_RANDOM


def test_one_of_the_two_profiles_is_in_use() -> None:
    assert settings.get_current_profile_name() in ("fixed", "random")


def test_random_examples_are_those_of_every_file_that_has_some() -> None:
    show = "show:; @echo $(RANDOM_TESTS)"
    made = subprocess.run(
        ["make", "--silent", "--no-print-directory", f"--eval={show}", "show"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    decides = re.compile(r"^@given\b|run_state_machine_as_test|\bTestCase$", re.MULTILINE)
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    wanted = {str(p.relative_to(ROOT)) for p in files if decides.search(p.read_text())}
    assert len(wanted) > 20
    assert set(made.stdout.split()) == wanted


def test_contributors_are_told_how_many_more_they_are() -> None:
    words = {5: "five", 10: "ten", 20: "twenty"}
    told = f"{words[TIMES_WHEN_RANDOM]} times as many of the session machines"
    assert told in (ROOT / "CONTRIBUTING.md").read_text()
