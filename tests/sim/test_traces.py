"""Generated traces have every published quantile of their workload, at its size."""

from __future__ import annotations

import pytest

from stream2llm.workload.traces.fit import fit, fit_table
from stream2llm.workload.traces.format import Scale, Shape
from stream2llm.workload.traces.generate import generate
from stream2llm.workload.traces.measure import Samples, statistic
from stream2llm.workload.traces.targets import TARGETS


def measured(shape: Shape, count: int, seed: int) -> Samples:
    samples, scale = Samples(), Scale()
    for session in generate(shape, [float(number) for number in range(count)], seed, scale):
        samples.add(session, session.document_table({}), scale)
    return samples


@pytest.mark.parametrize("shape", ["crawler", "anns"])
def test_every_quantile_is_within_a_tenth(shape: Shape) -> None:
    rows = fit(measured(shape, TARGETS[shape].num_queries, seed=1), shape)
    assert len(rows) == sum(map(len, TARGETS[shape].statistics.values())) + (shape == "anns")
    assert all(row.is_met for row in rows), fit_table(rows)


@pytest.mark.parametrize("shape", ["crawler", "anns"])
def test_the_retrieval_time_is_the_first_chunk_plus_the_gaps(shape: Shape) -> None:
    """In ANNS most of it passes before the first result, in crawls less than half."""
    samples = measured(shape, 1000, seed=2)
    in_gaps = sum(samples.gap_ms) / 1000 / sum(samples.retrieval_s)
    assert 0 < in_gaps < 1
    assert (in_gaps < 0.25) == (shape == "anns")


def test_crawls_invalidate_nothing() -> None:
    assert statistic(measured("crawler", 200, seed=3).invalidated, "max") == 0
