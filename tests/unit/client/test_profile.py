"""`stream2llm profile` before and after the measuring, which is replaced here."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from cost_profiles.load import load_profile
from prefill_worker import profiling
from stream2llm.cli import profile as command
from tests.command_lines import check_failed, cli
from tests.profiles import a_profile


@pytest.fixture
def subjects(monkeypatch: pytest.MonkeyPatch) -> list[profiling.Subject]:
    """What was asked to be measured; the answer is always the same."""
    asked: list[profiling.Subject] = []

    def measure(subject: profiling.Subject, *_: Any) -> Any:
        asked.append(subject)
        return a_profile()

    monkeypatch.setattr(profiling, "measure_profile", measure)
    return asked


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a-model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


run = partial(cli, "profile")


def test_it_writes_the_profile_a_figure_and_a_table(
    subjects: list[profiling.Subject], model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "here.json"
    result = run("--model", model, "--output", output)
    assert result.exit_code == 0, result.output
    assert load_profile(output) == a_profile()
    assert (tmp_path / "here.png").stat().st_size > 0
    assert "the cheaper way" in result.stdout
    assert f"cost_profile: {output}" in result.stderr
    assert subjects[0].model == model


def test_without_matplotlib_the_profile_is_written_all_the_same(
    subjects: list[profiling.Subject], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    result = run("--model", model, "--output", tmp_path / "here.json")
    assert result.exit_code == 0, result.output
    assert load_profile(tmp_path / "here.json") == a_profile()
    assert "pip install 'stream2llm[plot]'" in result.stderr
    assert not (tmp_path / "here.png").exists()


def test_a_figure_that_was_asked_for_is_refused_before_anything_is_measured(
    subjects: list[profiling.Subject], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    result = run("--model", model, "--output", tmp_path / "a.json", "--figure", tmp_path / "a.pdf")
    check_failed(result, 3, "--figure: matplotlib is not installed")
    assert not subjects


def test_a_figure_of_no_known_format_is_refused_before_anything_is_measured(
    subjects: list[profiling.Subject], model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    figure = tmp_path / "a.docx"
    result = run("--model", model, "--output", tmp_path / "a.json", "--figure", figure)
    check_failed(result, 3, f"{figure}: not a format for figures; there are")
    assert not subjects


def test_the_file_is_named_after_device_model_and_ranks(
    subjects: list[profiling.Subject], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiling, "device_name", lambda: "NVIDIA H100 80GB/HBM3")
    result = run("--model", model, "--tensor-parallel-size", 2)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "nvidia-h100-80gb-hbm3_a-model_tp2.json").exists()
    assert subjects[0].engine_args["tensor_parallel_size"] == 2


def test_a_configuration_gives_model_engine_and_cores(
    subjects: list[profiling.Subject], model: Path, tmp_path: Path
) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text(
        f"model: {model}\n"
        "prefill:\n"
        '  cpu_bind: "0-1;2-3"\n'
        "  engine: {block_size: 64, max_num_batched_tokens: 256}\n"
        '  env: {VLLM_CPU_KVCACHE_SPACE: "2"}\n'
    )
    result = run("--config", config, "--output", tmp_path / "here.json")
    assert result.exit_code == 0, result.output
    [subject] = subjects
    assert subject.model == model
    assert subject.engine_args == {"block_size": 64, "max_num_batched_tokens": 256}
    assert subject.environment == {
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
    }


def test_the_command_is_told_as_it_was_given(
    subjects: list[profiling.Subject], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["stream2llm", "profile", "--minutes", "3", "-o", "a b.json"])
    run("--model", model, "--output", tmp_path / "here.json")
    assert subjects[0].command == "stream2llm profile --minutes 3 -o 'a b.json'"


def test_an_unknown_model_is_named_with_those_there_are(tmp_path: Path) -> None:
    result = run("--model", "nosuch", "--output", tmp_path / "here.json")
    check_failed(result, 3, "model directory nosuch does not exist", "smollm2-135m-instruct")


@pytest.mark.parametrize("option", ["--output", "--figure"])
def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    subjects: list[profiling.Subject], model: Path, tmp_path: Path, option: str
) -> None:
    result = run("--model", model, option, tmp_path / "no" / "such" / "file.png")
    check_failed(result, 3, f"{option}: there is no directory")
    result = run("--model", model, option, tmp_path)
    assert f"{option}: {tmp_path} is a directory" in result.stderr
    assert not subjects


@pytest.mark.parametrize("minutes", ["0.1", "6", "many"])
def test_minutes_have_bounds(minutes: str) -> None:
    result = run("--minutes", minutes)
    check_failed(result, 2, "--minutes")


def test_a_misspelt_engine_argument_is_named_before_anything_is_measured(
    subjects: list[profiling.Subject], model: Path, tmp_path: Path
) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text(f"model: {model}\nprefill: {{engine: {{blok_size: 32}}}}")
    result = run("--config", config)
    check_failed(result, 3, "prefill.engine.blok_size: ", "did you mean block_size?")
    assert subjects == []
