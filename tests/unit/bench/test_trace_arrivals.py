"""Arrivals: Poisson, or what a file says."""

from __future__ import annotations

import random
from itertools import islice, pairwise
from pathlib import Path

import pytest

from stream2llm.workload.traces.arrivals import first, from_file, poisson
from stream2llm.workload.traces.check import TraceError

pytestmark = pytest.mark.unit


def a_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "times.txt"
    path.write_text(text)
    return path


def test_poisson_has_its_rate_and_its_spread() -> None:
    times = list(islice(poisson(4.0, random.Random(1)), 20_000))
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.25, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.03)


def test_a_file_begins_at_zero_and_load_brings_arrivals_together(tmp_path: Path) -> None:
    path = a_file(tmp_path, "# seconds\n10\n\n10.5\n14\n")
    assert from_file(path) == [0.0, 0.5, 4.0]
    assert from_file(path, load=2.0) == [0.0, 0.25, 2.0]


def test_iso_times_are_utc_unless_they_say_otherwise(tmp_path: Path) -> None:
    path = a_file(tmp_path, "2026-01-01T00:00:00\n2026-01-01T02:00:01+02:00\n")
    assert from_file(path) == [0.0, 1.0]


def test_times_keep_all_their_digits(tmp_path: Path) -> None:
    """A float of seconds since 1970 has six; a byte order mark is no part of the first time."""
    text = "\ufeff2023-11-16 18:17:03.9799600\r\n2023-11-16 18:17:03,9799601\r\n"
    path = a_file(tmp_path, f"{text}2023-11-16T20:17:04.98+02:00\r\n")
    assert from_file(path) == [0.0, 1e-7, 1.00004]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\nsoon\n", "line 2: 'soon' is neither seconds nor an ISO 8601 time"),
        ("1\n\n0.5\n", "line 3: 0.5 is before the line above it"),
        ("nan\n", "line 1: 'nan' is no time"),
    ],
)
def test_a_wrong_line_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=message):
        from_file(a_file(tmp_path, text))


def test_too_few_arrivals_are_told() -> None:
    with pytest.raises(TraceError, match="a file: has 2 arrivals; 3 are needed"):
        first(3, [0.0, 1.0], "a file")
