"""What a profile run measures in how much room and time, and how times become points."""

from __future__ import annotations

import random

import pytest

from prefill_worker.profile_budget import Budget, Progress
from prefill_worker.profile_plan import (
    RecomputePlan,
    Samples,
    growing,
    note_of,
    recompute_plan,
    recompute_points,
    swap_points,
    swap_sizes,
)
from stream2llm.api.errors import InvalidRequestError, UnavailableError
from stream2llm.serving.system.clock import ManualClock
from tests.refusals import refused

# -- what is measured --------------------------------------------------------


def test_runs_below_a_step_are_halved_and_steps_go_as_far_as_a_session_can() -> None:
    plan = recompute_plan(512, max_tokens=8190)
    assert plan == RecomputePlan((32, 64, 128, 256, 512), 512, num_steps=15)
    assert plan.longest == 7680


def test_a_budget_larger_than_a_session_is_one_step() -> None:
    assert recompute_plan(8192, 1000) == RecomputePlan((62, 125, 250, 500, 1000), 1000, 1)


@pytest.mark.parametrize("max_tokens", [-1, 0, 31, 64, 200])
def test_too_short_sessions_are_refused_by_name(max_tokens: int) -> None:
    with refused(f"at most {max_tokens} tokens", field="engine.max_model_len"):
        recompute_plan(512, max_tokens)


def test_copies_double() -> None:
    assert swap_sizes(364) == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert swap_sizes(4) == (1, 2, 4)


@pytest.mark.parametrize("max_blocks", [0, 1, 3])
def test_too_little_memory_for_copies_is_refused(max_blocks: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {max_blocks} blocks"):
        swap_sizes(max_blocks)


# -- what becomes of the times -------------------------------------------------


def test_the_median_of_each_size_counts() -> None:
    samples = Samples()
    for size, seconds in ((8, 3.0), (4, 1.0), (8, 100.0), (8, 2.0), (4, 2.0)):
        samples.add(size, seconds)
    assert samples.medians() == {4: 1.5, 8: 3.0}
    assert list(samples.medians()) == [4, 8]
    assert samples.num_rounds == (2, 3)


@pytest.mark.parametrize(
    ("measured", "grown"),
    [
        ({4: 0.4, 1: 0.1, 2: 0.2}, {1: 0.1, 2: 0.2, 4: 0.4}),
        # A plateau is its mean at its smallest size, the last one reaches as far as was measured.
        ({1: 0.2, 2: 0.1, 4: 0.15, 8: 0.5}, {1: 0.15, 8: 0.5}),
        ({1: 0.1, 2: 0.5, 4: 0.3}, {1: 0.1, 4: 0.4}),
        # Equal to four digits is equal.
        ({1: 0.10001, 2: 0.10002, 4: 0.3}, {1: 0.1, 4: 0.3}),
    ],
)
def test_what_does_not_grow_becomes_a_plateau(
    measured: dict[int, float], grown: dict[int, float]
) -> None:
    assert growing(measured) == grown


@pytest.mark.parametrize("seed", range(20))
def test_whatever_was_measured_grows_and_reaches_the_end(seed: int) -> None:
    noise = random.Random(seed)
    measured = {1 << power: noise.uniform(0.1, 1.0) for power in range(12)}
    grown = growing(measured)
    assert list(grown.values()) == sorted(set(grown.values()))
    assert list(grown) == sorted(grown)
    assert max(grown) == 2048
    assert min(measured.values()) * 0.999 <= min(grown.values())
    assert max(grown.values()) <= max(measured.values()) * 1.001


def test_steps_stand_behind_the_runs_from_nothing() -> None:
    points = recompute_points({64: 0.2, 32: 0.1, 128: 0.4}, {256: 0.6, 128: 0.5}, 128)
    told = [(p.num_tokens, p.num_context_tokens, p.seconds) for p in points]
    assert told == [(32, 0, 0.1), (64, 0, 0.2), (128, 0, 0.4), (128, 128, 0.5), (128, 256, 0.6)]


def test_a_full_step_that_was_too_fast_still_begins_the_long_run() -> None:
    points = recompute_points({32: 0.1, 64: 0.3, 128: 0.25}, {128: 0.5, 256: 0.6}, 128)
    assert [(p.end, p.seconds) for p in points] == [(32, 0.1), (128, 0.275), (256, 0.5), (384, 0.6)]


def test_too_few_points_that_grow_ask_for_another_try() -> None:
    with refused("only 1 sizes", reason="TOO_NOISY", error=UnavailableError):
        swap_points({1: 0.3, 2: 0.2, 4: 0.1})


def test_the_note_says_how_many_samples_there_were_and_how_they_vary() -> None:
    some, more, none = Samples(), Samples(), Samples()
    some.add(1, 0.1)
    for seconds in (0.1, 9.0, 0.2, 0.18, 0.22):
        more.add(1, seconds)
    text = "Medians of {} samples a size, the middle half of which typically spans {} %"
    assert text.format("5", 20) in note_of("Copies", (more, none))
    assert text.format("1 to 5", 10) in note_of("Steps", (some, more))


# -- the budget ----------------------------------------------------------------


class Hearer:
    """A budget on a clock that stands still, and what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.clock = ManualClock(monotonic_s=1000.0)
        self.progress = Progress(self.lines.append, self.clock, ends_s=1100.0)
        self.budget = Budget(self.clock, 1100.0, self.progress)


def test_a_part_is_a_share_of_what_is_left() -> None:
    hearer = Hearer()
    hearer.clock.advance(20)
    part = hearer.budget.part(0.25)
    assert part.left_s == 20
    assert part.has(20)
    assert not part.has(21)
    hearer.clock.advance(90)
    assert hearer.budget.part(0.25).left_s == 0


def test_progress_says_what_the_whole_run_has_left() -> None:
    hearer = Hearer()
    hearer.clock.advance(40)
    hearer.budget.part(0.5).progress.report("half-way")
    assert hearer.lines == ["[ 60 s left] half-way"]


def test_ticks_that_come_fast_are_not_told() -> None:
    hearer = Hearer()
    for number in range(10):
        hearer.clock.advance(0.5)
        hearer.progress.tick(f"step {number}")
    assert hearer.lines == ["[ 98 s left] step 3", "[ 96 s left] step 7"]


def test_too_little_time_names_the_option() -> None:
    error = Hearer().budget.too_short("nothing fits")
    assert error.field == "--minutes"
    assert "nothing fits" in error.message
