"""Hypothesis tries the same examples every time, unless random ones are requested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.examples import TIMES_WHEN_RANDOM, examples

pytestmark = pytest.mark.unit


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
