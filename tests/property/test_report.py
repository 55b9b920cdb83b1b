"""Reports against their invariants, for any run.

1. A run is what its file says: save and load give an equal record.
2. Percentiles never fall with the percent, and lie between the least and the greatest value.
3. Every session is either completed or counted by one error.
4. An interval holds what most brute-force resamples give; better and worse exclude 1.
5. Equal values give equal intervals; what is better where less is good is worse where more is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream2llm.workload.records import RunRecord, Sample, SessionRecord
from stream2llm.workload.report import Verdict, distribution, ratio_interval, summarize
from stream2llm.workload.report.save import run_from_text, run_to_text

TIMES = st.floats(0, 1e6)
COUNTS = st.integers(0, 10**9)
TEXTS = st.text(max_size=12)
VALUES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60)


def sessions() -> st.SearchStrategy[SessionRecord]:
    fields: dict[str, Any] = {
        "sealed_s": st.none() | TIMES,
        "token_times_s": st.lists(TIMES, max_size=5).map(sorted).map(tuple),
        "session_id": TEXTS,
        "error": TEXTS,
    }
    fields |= dict.fromkeys(
        ("due_s", "opened_s", "seal_due_s", "ended_s", "lateness_s", "generator_lateness_s"), TIMES
    )
    return st.builds(SessionRecord, **fields)


RUNS = st.builds(
    RunRecord,
    system=TEXTS,
    trace=TEXTS,
    duration_s=TIMES,
    sessions=st.lists(sessions(), max_size=4).map(tuple),
    samples=st.lists(st.builds(Sample, TIMES, st.floats(0, 1), COUNTS, COUNTS)).map(tuple),
    counters=st.dictionaries(TEXTS, TIMES, max_size=3),
    settings=st.dictionaries(TEXTS, TEXTS | TIMES, max_size=3),
)


@given(RUNS)
def test_1_a_file_loses_nothing(run: RunRecord) -> None:
    assert run_from_text(run_to_text(run), "here") == run


@given(VALUES)
def test_2_percentiles_are_in_order(values: list[float]) -> None:
    found = distribution(values)
    percentiles = list(found.percentiles.values())
    assert percentiles == sorted(percentiles)
    assert min(values) <= percentiles[0] <= percentiles[-1] <= found.maximum == max(values)


@given(RUNS)
def test_3_every_session_is_counted_once(run: RunRecord) -> None:
    summary = summarize(run)
    assert summary.completed + summary.failed == len(run.sessions)
    assert "" not in summary.errors


@settings(max_examples=25)
@given(
    st.integers(2, 60),
    st.integers(2, 60),
    st.sampled_from([0, 50, 90, 99, 99.9, 100]),
    st.randoms(),
)
def test_4_the_interval_is_that_of_resampling(
    num_ours: int, num_theirs: int, percent: float, random: Any
) -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    ours, theirs = rng.lognormal(size=num_ours), rng.lognormal(size=num_theirs)
    interval = ratio_interval(ours.tolist(), theirs.tolist(), percent)

    def resampled(values: Any) -> Any:
        drawn = values[rng.integers(values.size, size=(4000, values.size))]
        return np.percentile(drawn, percent, axis=1)

    ratios = resampled(ours) / resampled(theirs)
    # An interval that ends on a value which many resamples share holds more than 95 %.
    assert np.mean((ratios >= interval.low) & (ratios <= interval.high)) >= 0.93
    assert np.mean(ratios < interval.low) <= 0.035
    assert np.mean(ratios > interval.high) <= 0.035
    assert (interval.verdict is Verdict.EQUAL) == (interval.low <= 1 <= interval.high)


@given(VALUES, VALUES, st.floats(0, 100))
def test_5_the_verdict_has_two_sides(
    ours: list[float], theirs: list[float], percent: float
) -> None:
    one = ratio_interval(ours, theirs, percent)
    assert one == ratio_interval(ours, theirs, percent)  # seeded
    assert one.low <= one.high
    other = ratio_interval(ours, theirs, percent, higher_is_better=True)
    opposite = {"better": "worse", "worse": "better", "equal": "equal"}
    assert other.verdict == opposite[one.verdict]
