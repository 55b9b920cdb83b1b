"""Arrivals: Poisson, or what a file says."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean, pvariance

import pytest

from stream2llm.workload.traces.arrivals import (
    Gamma,
    Phases,
    Poisson,
    first,
    from_delays,
    from_file,
    process_of,
)
from stream2llm.workload.traces.check import TraceError


def a_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "times.txt"
    path.write_text(text)
    return path


def test_poisson_has_its_rate_and_its_spread() -> None:
    times = list(islice(Poisson().arrivals(4.0, random.Random(1)), 20_000))
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.25, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.03)


def _dispersion(times: list[float], interval_s: float) -> float:
    """Variance to mean of the counts in whole intervals."""
    counts = Counter(int(time / interval_s) for time in times)
    numbers = [counts[index] for index in range(int(times[-1] / interval_s))]
    return pvariance(numbers) / fmean(numbers)


def test_phases_have_the_dispersion_of_a_code_assistant() -> None:
    """Azure's: 14.5 times a Poisson process's in seconds, 82 times in tens of seconds."""
    phases, rate = Phases(), 2.45
    assert phases.dispersion(rate, 1.0) == pytest.approx(14.5, rel=0.03)
    assert phases.dispersion(rate, 10.0) == pytest.approx(82, rel=0.03)
    times = list(islice(phases.arrivals(rate, random.Random(1)), 200_000))
    assert len(times) / times[-1] == pytest.approx(rate, rel=0.05)
    for interval_s in (1.0, 10.0):
        expected = phases.dispersion(rate, interval_s)
        assert _dispersion(times, interval_s) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gamma_gaps_have_their_coefficient_of_variation(cv: float) -> None:
    times = list(islice(Gamma(cv).arrivals(4.0, random.Random(1)), 100_000))
    gaps = [after - before for before, after in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.25, rel=0.05)
    assert pvariance(gaps) ** 0.5 / fmean(gaps) == pytest.approx(cv, rel=0.05)


def test_bursts_are_named_in_an_option() -> None:
    assert process_of("gamma=4") == Gamma(4)
    assert process_of("phases") == Phases()
    assert process_of("phases=0.2,30") == Phases(0.2, 30)


@pytest.mark.parametrize("process", [Gamma(0.7), Phases(), Phases(0.2, 30)])
def test_a_process_is_written_as_the_option_that_names_it(process: Gamma | Phases) -> None:
    assert process_of(str(process)) == process


@pytest.mark.parametrize(
    "text",
    ["", "gamma", "gamma=", "gamma=x", "gamma=0", "gamma=nan", "phases=0.2", "phases=1,1", "phases=,", "on"],
)  # fmt: skip
def test_other_bursts_are_refused(text: str) -> None:
    with pytest.raises(TraceError, match="they must be gamma=CV"):
        process_of(text)


@pytest.mark.parametrize(
    ("text", "times_s"),
    [
        ("# seconds\n10\n\n10.5\n14\n", [0.0, 0.5, 4.0]),
        # ISO times are UTC unless they say otherwise.
        ("2026-01-01T00:00:00\n2026-01-01T02:00:01+02:00\n", [0.0, 1.0]),
        # All digits are kept, of which a float of seconds since 1970 has six; a byte order mark
        # is no part of the first time.
        (
            "\ufeff2023-11-16 18:17:03.9799600\r\n2023-11-16 18:17:03,9799601\r\n"
            "2023-11-16T20:17:04.98+02:00\r\n",
            [0.0, 1e-7, 1.00004],
        ),
    ],
)
def test_a_file_begins_at_zero_and_load_brings_arrivals_together(
    text: str, times_s: list[float], tmp_path: Path
) -> None:
    path = a_file(tmp_path, text)
    assert from_file(path) == times_s
    assert from_file(path, load=2.0) == [time_s / 2 for time_s in times_s]


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


def test_delays_of_a_file_add_up(tmp_path: Path) -> None:
    """As the paper's artifact has them: the first session waits for the first delay."""
    text = "# QPS: 4.0000 queries per second\n# Random seed: 42\n#\n0.5\n0.25\n0\n"
    assert from_delays(a_file(tmp_path, text), load=2) == [0.25, 0.375, 0.375]


@pytest.mark.parametrize("line", ["-0.1", "soon", "nan", "2025-10-16T07:08:23"])
def test_a_delay_that_is_none_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(TraceError, match=r"times\.txt, line 2"):
        from_delays(a_file(tmp_path, f"0.5\n{line}\n"))
