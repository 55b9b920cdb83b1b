"""`python -m experiments.gpu`: what is run where, within the time, and what the report says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments.gpu import checks, steps
from experiments.gpu.__main__ import NONE_RAN, exit_code, main, run_all
from experiments.gpu.copies import copies, jobs, pool, require_exact, some_blocks
from experiments.gpu.machine import this_machine
from experiments.gpu.plan import CHECKS, LIMIT_S, Check, Machine, Result, chosen, why_not
from experiments.gpu.report import as_json, as_markdown
from prefill_worker.block_copy import make_copier
from prefill_worker.swap_jobs import Direction, JobResults, StepJobs
from stream2llm.serving.system.clock import ManualClock

WHOLE = Machine("NVIDIA H200", 141 * 2**30, "2.13.0", "13.0", "0.32.0", "9.0", 16)


def test_without_a_device_nothing_runs_and_the_report_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--output", str(tmp_path)], Machine(torch="2.13.0", num_cores=2))
    assert code == NONE_RAN
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "report.md").read_text()
    assert printed.count("| not run | no CUDA device |") == len(CHECKS)
    found = json.loads((tmp_path / "report.json").read_text())
    assert {each["outcome"] for each in found["results"]} == {"not run"}


def test_a_machine_without_a_device_is_seen_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine = this_machine()
    assert (machine.device, machine.torch) == ("", torch.__version__)


@pytest.mark.parametrize(
    ("machine", "missing"),
    [
        (Machine(), "torch is not installed"),
        (replace(WHOLE, device=""), "no CUDA device"),
        (replace(WHOLE, vllm=""), "vLLM is not installed"),
        (replace(WHOLE, pytest=""), "pytest is not installed"),
        (WHOLE, ""),
    ],
)
def test_what_a_check_needs_is_named(machine: Machine, missing: str) -> None:
    check = Check("a", "shows", 10, needs_vllm=True, needs_pytest=True)
    assert why_not(check, machine, LIMIT_S) == missing


def test_copies_need_no_vllm() -> None:
    bare = replace(WHOLE, vllm="", pytest="")
    ran = [check.name for check in CHECKS if not why_not(check, bare, LIMIT_S)]
    assert ran == ["pool", "copies", "streams"]


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_all_ends_within_the_time_however_long_checks_take(share: float, tmp_path: Path) -> None:
    clock = ManualClock()

    def run(check: Check, _: Path) -> Result:
        clock.advance(share * check.limit_s)
        return Result(check.name, "passed", {})

    results = run_all(CHECKS, WHOLE, tmp_path, run, clock, LIMIT_S)
    assert clock.monotonic_s() <= LIMIT_S <= 8 * 60
    assert [each.name for each in results] == [check.name for check in CHECKS]
    left_out = [each for each in results if each.outcome == "not run"]
    assert bool(left_out) == (share == 1.0)
    assert all("s are left" in each.why for each in left_out)


def test_a_check_that_fails_decides_the_exit_code() -> None:
    passed, failed, not_run = (
        Result("pool", outcome, {}) for outcome in ("passed", "failed", "not run")
    )
    assert exit_code([passed, not_run]) == 0
    assert exit_code([passed, failed]) == 1
    assert exit_code([not_run]) == NONE_RAN


def test_the_report_has_all_figures_and_stays_a_table() -> None:
    results = [
        Result("copies", "passed", {"out 8 blocks, GB/s": 51.23456}),
        Result("streams", "failed", {}, "AssertionError: a | b\nmore"),
    ]
    text = as_markdown(WHOLE, results)
    assert "NVIDIA H200, 141 GiB; 16 cores; torch 2.13.0, vLLM 0.32.0, CUDA 13.0." in text
    assert "| out 8 blocks, GB/s | 51.23 |" in text
    assert "| **FAILED** | AssertionError: a \\| b more |" in text
    assert json.loads(as_json(WHOLE, results))["results"][0]["figures"]["out 8 blocks, GB/s"]


def test_only_known_checks_are_chosen_and_in_their_order() -> None:
    assert [check.name for check in chosen(["streams", "pool"])] == ["pool", "streams"]
    assert chosen([]) == CHECKS
    with pytest.raises(ValueError, match="no check speed; there are pool, "):
        chosen(["speed"])


def test_every_check_can_be_run() -> None:
    assert set(checks.CHECKS) == {check.name for check in CHECKS}
    assert set(checks.ENVIRONMENT) <= set(checks.CHECKS)


def test_a_check_that_raises_leaves_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> dict[str, float | str]:
        raise RuntimeError("no such stream")

    monkeypatch.setattr(checks, "CHECKS", {"streams": broken})
    monkeypatch.setattr(checks.os, "environ", {})
    checks.main("streams", tmp_path / "result", 1.0, tmp_path)
    found = Result(**json.loads((tmp_path / "result").read_text()))
    assert found == Result("streams", "failed", {}, "RuntimeError: no such stream")


# -- what a CPU can show of the checks themselves -----------------------------------------


def test_copies_are_checked_and_measured_on_host_memory_too() -> None:
    figures = copies("cpu", num_blocks=16)
    assert set(figures) == {
        f"{direction} {count} blocks, GB/s" for direction in Direction for count in (1, 8)
    }
    assert all(isinstance(each, float) and each > 0 for each in figures.values())
    assert list(pool("cpu", [0.01])) == ["0.01 GiB, s"]


def test_a_copy_that_is_late_is_found() -> None:
    """As with a copier that does not wait for the step before: it copies what the step has left."""

    class Late:
        def __init__(self, view: torch.Tensor) -> None:
            self._copier = make_copier([view], 8)
            self._kept: list[StepJobs] = []

        def start(self, started: StepJobs) -> None:
            self._kept.append(started)

        def take_results(self, *, wait: bool) -> JobResults:
            for each in self._kept:
                self._copier.start(each)
            return self._copier.take_results(wait=wait)

    view = some_blocks(16, "cpu")
    with pytest.raises(AssertionError, match="other bytes"):
        require_exact(view, Late(view), 4)
    assert jobs(Direction.IN, [1], [2]).ins[0].slots == (2,)


def test_what_is_no_step_of_the_device_is_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two milliseconds to schedule, ten to execute, of which the device has seven, and one to update."""
    clock = ManualClock()
    monkeypatch.setattr(steps, "_CLOCK", clock)
    monkeypatch.setattr(steps, "device_clock", lambda: lambda: 0.007)

    class Engine:
        """Also its scheduler."""

        config = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 100))

        def __init__(self) -> None:
            self.scheduler = self
            self.asked: list[int] = []

        def add(self, _: str, tokens: list[int]) -> None:
            self.asked.append(len(tokens))

        def schedule(self) -> SimpleNamespace:
            clock.advance(0.002)
            return SimpleNamespace(total_num_scheduled_tokens=self.asked[-1])

        def execute(self, _: object) -> None:
            clock.advance(0.010)

        def update_from_output(self, *_: object) -> None:
            clock.advance(0.001)

    engine = Engine()
    figures = steps.StepMeter(engine).measure(64)
    assert figures == pytest.approx(
        {
            "device computes, ms": 7,
            "device waits, ms": 6,
            "of that scheduling, ms": 2,
            "of that updating, ms": 1,
        }
    )
    assert set(engine.asked) == {64}


def test_a_small_device_gets_a_model_of_fewer_layers() -> None:
    small, large = (steps.model_config(gib * 2**30)["num_hidden_layers"] for gib in (24, 80))
    assert small < large == 32
