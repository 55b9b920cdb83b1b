"""Factors learned from observed times; the bounds and online calibration are in tests/property."""

from __future__ import annotations

import pytest

from cost_profiles.correction import (
    BOUND,
    CALIBRATION_OBSERVATIONS,
    CorrectedCostModel,
    Correction,
    Factors,
    is_recompute_sample,
    is_swap_sample,
)
from tests.profiles import FlatCosts


def test_without_observations_nothing_is_corrected() -> None:
    model = CorrectedCostModel(FlatCosts())
    assert model.factors == Factors(1.0, 1.0, 1.0)
    assert model.recompute_s(0, 10) == FlatCosts().recompute_s(0, 10)


@pytest.mark.parametrize("truth", [5.0, 1 / 5])
def test_a_profile_wrong_by_five_is_corrected_within_the_stated_observations(truth: float) -> None:
    correction = Correction()
    for _ in range(CALIBRATION_OBSERVATIONS):
        correction = correction.after(predicted_s=0.1, actual_s=0.1 * truth)
    assert correction.factor == pytest.approx(truth, rel=0.1)


def test_one_absurd_step_does_not_swing_it() -> None:
    assert Correction().after(predicted_s=0.1, actual_s=3600).factor == pytest.approx(1.105, 1e-3)


def test_it_comes_back_when_the_device_does() -> None:
    correction = Correction()
    for actual_s in [0.3] * 50 + [0.1] * 50:
        correction = correction.after(0.1, actual_s)
    assert correction.factor == pytest.approx(1, rel=0.01)


def test_it_stops_at_its_bound() -> None:
    correction = Correction()
    for _ in range(200):
        correction = correction.after(0.001, 1000)
    assert correction.factor == pytest.approx(BOUND)
    assert correction.num_observations == 200


def test_each_curve_learns_alone_from_the_profiles_own_prediction() -> None:
    model = CorrectedCostModel(FlatCosts(per_token_s=0.001, per_block_s=0.01))
    for _ in range(60):
        model.observe_step([(0, 60), (500, 540)], actual_s=0.2)
        model.observe_swap_out(10, actual_s=0.1)
        model.observe_swap_in(10, actual_s=0.05)
    assert model.factors == pytest.approx((2, 1, 0.5), rel=0.01)
    assert model.recompute_s(0, 100) == pytest.approx(0.2, rel=0.01)
    assert model.swap_out_s(10) + model.swap_in_s(10) == pytest.approx(0.15, rel=0.01)


@pytest.mark.parametrize(("predicted_s", "actual_s"), [(0.0, 1.0), (1.0, 0.0), (1.0, -0.1)])
def test_what_has_no_ratio_is_left_out(predicted_s: float, actual_s: float) -> None:
    assert Correction().after(predicted_s, actual_s) == Correction()


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid durations"):
        Correction().after(1.0, float("nan"))


def test_only_large_work_tells_something() -> None:
    assert is_recompute_sample(1024, token_budget=2048)
    assert not is_recompute_sample(1023, token_budget=2048)
    assert is_swap_sample(8)
    assert not is_swap_sample(7)
