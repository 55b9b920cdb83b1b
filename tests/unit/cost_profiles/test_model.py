"""What the curves answer: at points, between them, and beyond the last."""

from __future__ import annotations

import pytest

from cost_profiles.curve import fit_law, recompute_knots
from cost_profiles.model import CostModel
from cost_profiles.rebase import rebase
from cost_profiles.types import ModelGeometry, RecomputePoint
from tests.profiles import a_profile, a_recompute, a_swap


def test_nothing_costs_nothing() -> None:
    model = CostModel(a_profile())
    assert model.recompute_s(300, 300) == 0
    assert model.swap_out_s(0) == 0
    assert model.swap_in_s(0) == 0


def test_points_are_met_and_straight_lines_join_them() -> None:
    points = ((100, 0, 0.01), (200, 0, 0.05), (400, 0, 0.06), (800, 0, 0.08))
    model = CostModel(a_profile(recompute=a_recompute(points)))
    assert model.recompute_s(0, 200) == pytest.approx(0.05)
    assert model.recompute_s(0, 150) == pytest.approx(0.03)
    assert model.recompute_s(0, 50) == pytest.approx(0.005)
    assert model.recompute_s(100, 300) == pytest.approx(0.045)


def test_the_steps_of_one_chunked_run_make_the_same_curve_as_runs_from_nothing() -> None:
    runs = ((100, 0, 0.01), (200, 0, 0.03), (300, 0, 0.06), (400, 0, 0.10))
    steps = ((100, 0, 0.01), (100, 100, 0.02), (100, 200, 0.03), (100, 300, 0.04))
    of_runs = CostModel(a_profile(recompute=a_recompute(runs)))
    of_steps = CostModel(a_profile(recompute=a_recompute(steps)))
    for end in (50, 250, 400, 1000):
        assert of_steps.recompute_s(0, end) == pytest.approx(of_runs.recompute_s(0, end))


def test_the_fixed_part_of_a_step_is_what_the_shortest_runs_have_beside_their_tokens() -> None:
    def fixed_s(*points: tuple[int, int, float]) -> float:
        return CostModel(a_profile(recompute=a_recompute(points))).step_fixed_s

    assert fixed_s((100, 0, 0.03), (200, 0, 0.05), (400, 0, 0.06)) == pytest.approx(0.01)
    assert fixed_s((100, 0, 0.03), (100, 100, 0.02)) == pytest.approx(0.01)
    assert fixed_s((100, 0, 0.03), (200, 0, 0.08)) == 0.0  # attention grows faster
    assert fixed_s((100, 0, 0.03)) == 0.0


def test_runs_of_several_steps_do_not_show_the_fixed_part_of_one() -> None:
    points = ((100, 0, 0.03), (100_000, 0, 3.0))
    assert CostModel(a_profile(recompute=a_recompute(points))).step_fixed_s == 0.0


def test_a_point_may_begin_at_any_earlier_end() -> None:
    points = [RecomputePoint(100, 0, 1.0), RecomputePoint(100, 100, 2.0)]
    assert recompute_knots([*points, RecomputePoint(300, 100, 7.0)])[1:] == [
        (100, 1.0),
        (200, 3.0),
        (400, 8.0),
    ]


def test_beyond_the_last_point_prefill_grows_with_the_square() -> None:
    def law(n: int) -> float:
        return 0.002 + 1e-5 * n + 2e-9 * n * n

    points = tuple((n, 0, law(n)) for n in (512, 1024, 2048, 4096, 8192))
    model = CostModel(a_profile(recompute=a_recompute(points)))
    assert model.recompute_s(0, 65536) == pytest.approx(law(65536), rel=1e-6)
    assert model.recompute_s(65536, 131072) == pytest.approx(law(131072) - law(65536), rel=1e-6)


def test_beyond_the_last_point_copies_grow_straight() -> None:
    assert CostModel(a_profile()).swap_out_s(999) == pytest.approx(1.0)


def test_the_law_never_bends_down() -> None:
    # Noise made the long run faster than the short ones promised.
    a, b, c = fit_law([(100, 0.01), (200, 0.02), (400, 0.03), (800, 0.04)], highest_power=2)
    assert min(a, b, c) >= 0
    assert b + c > 0


def test_each_way_has_a_curve_of_its_own() -> None:
    slow_back = a_swap(((1, 0.02), (9, 0.1), (99, 1.0)))
    model = CostModel(a_profile(swap_in=slow_back))
    assert model.swap_out_s(9) == pytest.approx(0.01)
    assert model.swap_in_s(9) == pytest.approx(0.1)


@pytest.mark.parametrize(("begin", "end"), [(-1, 5), (6, 5)])
def test_a_range_that_is_none_is_refused(begin: int, end: int) -> None:
    with pytest.raises(ValueError, match="invalid range of tokens"):
        CostModel(a_profile()).recompute_s(begin, end)


def test_a_negative_number_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid number of blocks: -1"):
        CostModel(a_profile()).swap_in_s(-1)


def test_kv_bytes_follow_from_the_geometry() -> None:
    llama = ModelGeometry("Llama-3.1-8B", 32, 8, 128, "bfloat16")
    assert llama.kv_bytes_per_token(1) == 131_072
    assert a_profile(model=llama, tensor_parallel_size=2).kv_bytes_per_token == 65_536


def test_ranks_beyond_the_heads_hold_copies() -> None:
    model = ModelGeometry("two heads", 1, 2, 64, "float32")
    assert model.kv_bytes_per_token(8) == model.kv_bytes_per_token(2)


def test_a_rebased_profile_prices_the_same_bytes_alike() -> None:
    profile = a_profile(block_size=16)
    large, small = CostModel(rebase(profile, 64)), CostModel(rebase(profile, 4))
    assert large.swap_out_s(20) == pytest.approx(CostModel(profile).swap_out_s(80))
    assert small.swap_out_s(80) == pytest.approx(CostModel(profile).swap_out_s(20))
    assert large.recompute_s(0, 500) == CostModel(profile).recompute_s(0, 500)


def test_rebasing_says_so_and_keeps_enough_points() -> None:
    rebased = rebase(a_profile(block_size=16), 4096)
    assert [point.num_blocks for point in rebased.swap_out.points] == [1, 2, 4]
    assert "Rebased from blocks of 16 tokens" in rebased.swap_out.provenance.note
    assert rebased.block_size == 4096


def test_rebasing_to_the_same_size_changes_nothing() -> None:
    profile = a_profile()
    assert rebase(profile, profile.block_size) is profile
