"""The table of experiments: each entry runs, and the docs have the same table."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.__main__ import EXPERIMENTS, main, overview

pytestmark = pytest.mark.unit
PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_explains_its_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    assert f"python -m experiments {name}" in capsys.readouterr().out


def test_without_a_name_the_table_is_printed_as_it_stands_in_the_docs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == overview()
    assert overview() in PAGE.read_text(), "copy what `python -m experiments` prints"


def test_an_unknown_experiment_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["nothing"]) == 2
    assert "planning" in capsys.readouterr().err


def test_a_missed_bound_fails_where_it_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["document-orders", "--queries", "30", "--seeds", "1"]
    assert main(options) == 0
    assert "missed: " in capsys.readouterr().out
    assert main([*options, "--check"]) == 1
