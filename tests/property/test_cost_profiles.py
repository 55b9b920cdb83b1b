"""Cost models, files, corrections and choices against their invariants, for any valid profile.

1. Nothing costs nothing; a token or a block costs something, also beyond the last point.
2. More tokens, more context behind the same end, and more blocks never cost less.
3. Recompute is additive: a range costs what its parts cost.
4. What was measured is what is answered.
5. A law a + b n + c n^2 is found again from any points of it.
6. What is dumped is what is parsed; a profile that loads has no problems.
7. Rebasing keeps the price of bytes and gives a valid profile.
8. A factor stays within its bounds and moves by no more than its step, whatever is observed.
9. A profile wrong by up to 5 x is corrected under noise and outliers.
10. `cost` never chooses the dearer way; the other modes never choose.
"""

from __future__ import annotations

from itertools import pairwise
from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_profiles.check import problems_of
from cost_profiles.correction import BOUND, CLIP, GAIN, Correction
from cost_profiles.curve import fit_law
from cost_profiles.decision import Action, Mode, cheaper
from cost_profiles.load import dump_profile, parse_profile
from cost_profiles.model import CostModel
from cost_profiles.rebase import rebase
from cost_profiles.types import Accelerator, CostProfile, ModelGeometry
from tests.profiles import FlatCosts, a_profile, a_recompute, a_swap

SECONDS = st.floats(1e-5, 10.0)
SIZES = st.integers(0, 300_000)


@st.composite
def recompute_points(draw: st.DrawFn) -> tuple[tuple[int, int, float], ...]:
    """Growing ends; each point begins at nothing or at an earlier end."""
    gaps = draw(st.lists(st.tuples(st.integers(1, 20_000), SECONDS), min_size=4, max_size=12))
    seconds_to = {0: 0.0}
    points, end, seconds = [], 0, 0.0
    for num_tokens, more_s in gaps:
        end, seconds = end + num_tokens, seconds + more_s
        context = draw(st.sampled_from(sorted(seconds_to)))
        points.append((end - context, context, seconds - seconds_to[context]))
        seconds_to[end] = seconds
    return tuple(points)


@st.composite
def swap_points(draw: st.DrawFn) -> tuple[tuple[int, float], ...]:
    gaps = draw(st.lists(st.tuples(st.integers(1, 2_000), SECONDS), min_size=3, max_size=8))
    points, num_blocks, seconds = [], 0, 0.0
    for more_blocks, more_s in gaps:
        num_blocks, seconds = num_blocks + more_blocks, seconds + more_s
        points.append((num_blocks, seconds))
    return tuple(points)


@st.composite
def profiles(draw: st.DrawFn) -> CostProfile:
    num_ranks = draw(st.sampled_from([1, 2, 4]))
    return a_profile(
        accelerator=draw(st.builds(Accelerator, st.just("Ünïcode @0@"), st.just(("a", 'b"')))),
        model=ModelGeometry("any", draw(st.integers(1, 99)), 4 * num_ranks, 64, "float16"),
        tensor_parallel_size=num_ranks,
        block_size=draw(st.sampled_from([1, 8, 16, 32, 48, 256])),
        recompute=a_recompute(draw(recompute_points())),
        swap_out=a_swap(draw(swap_points())),
        swap_in=a_swap(draw(swap_points())),
    )


@given(profiles(), SIZES, st.integers(1, 10_000))
def test_nothing_is_free_and_something_is_not(profile: CostProfile, start: int, more: int) -> None:
    model = CostModel(profile)
    assert model.recompute_s(start, start) == model.swap_out_s(0) == model.swap_in_s(0) == 0
    assert model.recompute_s(start, start + more) > 0
    assert model.swap_out_s(more) > 0
    assert model.swap_in_s(more) > 0


@given(profiles(), st.lists(SIZES, min_size=3, max_size=3))
def test_more_never_costs_less(profile: CostProfile, sizes: list[int]) -> None:
    model = CostModel(profile)
    low, middle, high = sorted(sizes)
    whole = model.recompute_s(low, high)
    rounding = 1e-12 * model.recompute_s(0, high + 1)
    assert model.recompute_s(low, middle) <= whole + rounding
    assert model.recompute_s(middle, high) <= whole + rounding
    assert model.swap_out_s(middle) <= model.swap_out_s(high) * (1 + 1e-12)
    assert model.swap_in_s(low) <= model.swap_in_s(middle) * (1 + 1e-12)


@given(profiles(), st.lists(SIZES, min_size=2, max_size=9))
def test_a_range_costs_what_its_parts_cost(profile: CostProfile, cuts: list[int]) -> None:
    model = CostModel(profile)
    cuts.sort()
    parts = sum(model.recompute_s(begin, end) for begin, end in pairwise(cuts))
    rounding = 1e-9 * model.recompute_s(0, cuts[-1])
    assert parts == pytest.approx(model.recompute_s(cuts[0], cuts[-1]), rel=1e-9, abs=rounding)


@given(profiles())
def test_what_was_measured_is_answered(profile: CostProfile) -> None:
    model = CostModel(profile)
    for point in profile.recompute.points:
        answer = model.recompute_s(point.num_context_tokens, point.end)
        assert answer == pytest.approx(point.seconds, rel=1e-6)
    for swap in profile.swap_in.points:
        assert model.swap_in_s(swap.num_blocks) == pytest.approx(swap.seconds)


@given(
    st.floats(0, 0.1),
    st.floats(1e-6, 1e-3),
    st.floats(0, 1e-8),
    st.sets(st.integers(64, 131_072), min_size=4, max_size=12),
)
def test_a_law_is_found_again(a: float, b: float, c: float, sizes: set[int]) -> None:
    def law(n: int) -> float:
        return a + b * n + c * n * n

    found = fit_law([(n, law(n)) for n in sorted(sizes)], highest_power=2)
    assert min(found) >= 0
    for n in sizes:
        assert found[0] + found[1] * n + found[2] * n * n == pytest.approx(law(n), rel=1e-3)


@given(profiles())
def test_files_lose_nothing(profile: CostProfile) -> None:
    assert problems_of(profile) == []
    assert parse_profile(dump_profile(profile), source="a file") == profile


@given(profiles(), st.sampled_from([1, 16, 32, 64, 1024]))
def test_bytes_cost_the_same_in_other_blocks(profile: CostProfile, block_size: int) -> None:
    rebased = rebase(profile, block_size)
    assert problems_of(rebased) == []
    old, new = CostModel(profile), CostModel(rebased)
    for point in rebased.swap_out.points:
        old_blocks, rest = divmod(point.num_blocks * block_size, profile.block_size)
        if rest == 0:
            assert new.swap_out_s(point.num_blocks) == pytest.approx(old.swap_out_s(old_blocks))


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), max_size=60))
def test_a_factor_keeps_its_bounds_and_its_step(observed: list[tuple[float, float]]) -> None:
    correction = Correction()
    for predicted_s, actual_s in observed:
        before, correction = correction, correction.after(predicted_s, actual_s)
        assert correction.factor * (1 + 1e-9) >= 1 / BOUND
        assert correction.factor <= BOUND * (1 + 1e-9)
        assert abs(correction.log_factor - before.log_factor) <= GAIN * CLIP + 1e-9


@given(
    st.floats(-log(5), log(5)),
    st.lists(st.floats(-0.3, 0.3), min_size=40, max_size=40),
    st.lists(st.sampled_from([-7.0, 7.0]), min_size=4, max_size=4),
)
def test_a_wrong_profile_is_corrected_in_forty_noisy_observations(
    log_truth: float, noise: list[float], outliers: list[float]
) -> None:
    """Noise of 30 % that may all point one way; every tenth observation is wrong by 1,000 x."""
    correction = Correction()
    for index, error in enumerate(noise):
        wild = outliers[index // 10] if index % 10 == 5 else 0.0
        correction = correction.after(0.1, 0.1 * exp(log_truth + error + wild))
    assert abs(correction.log_factor - log_truth) < 0.3 + GAIN * CLIP + 0.05


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 100_000),
    st.integers(1, 10_000),
    st.integers(0, 1000),
    st.sampled_from(Mode),
)
def test_the_cheaper_way_is_chosen(
    per_token_s: float, per_block_s: float, begin: int, num_tokens: int, num_blocks: int, mode: Mode
) -> None:
    cost = FlatCosts(per_token_s, per_block_s)
    choice = cheaper(cost, begin, begin + num_tokens, num_blocks, mode)
    prices = {Action.RECOMPUTE: choice.recompute_s, Action.SWAP: choice.swap_s}
    if num_blocks == 0 or mode is Mode.RECOMPUTE:
        assert choice.action is Action.RECOMPUTE
    elif mode is Mode.SWAP:
        assert choice.action is Action.SWAP
    else:
        assert prices[choice.action] == min(prices.values())
