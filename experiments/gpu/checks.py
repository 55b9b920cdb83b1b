"""Runs one check: `python -m experiments.gpu.checks NAME RESULT_FILE SECONDS FOLDER`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from experiments.gpu.copies import Figures, copies, pool, streams
from experiments.gpu.machine import this_machine
from experiments.gpu.plan import Result
from stream2llm.serving.system.clock import SystemClock

# The check's process needs this much of its time to end an engine.
_END_S = 15.0
_RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


def _pool(_seconds: float, _folder: Path) -> Figures:
    return pool()


def _copies(_seconds: float, _folder: Path) -> Figures:
    return copies()


def _streams(_seconds: float, _folder: Path) -> Figures:
    return streams()


def _tests(seconds: float, _folder: Path) -> Figures:
    """Only files that have such tests: collecting all takes minutes."""
    files = [
        str(each) for each in Path("tests").rglob("test_*.py") if "mark.gpu" in each.read_text()
    ]
    command = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds - 5, check=False)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    assert done.returncode == 0, f"{last}\n{done.stdout[-2000:]}{done.stderr[-1000:]}"
    return {"pytest": last}


def _steps(_seconds: float, folder: Path) -> Figures:
    from experiments.gpu.steps import steps, write_model

    return steps(write_model(folder, this_machine().memory_bytes))


def _profile(seconds: float, folder: Path) -> Figures:
    """Writes the profile beside the report; its points are the figures."""
    from cost_profiles.load import save_profile
    from experiments.gpu.steps import engine_args, write_model
    from prefill_worker.profiling import Subject, measure_profile

    clock = SystemClock()
    subject = Subject(
        write_model(folder, this_machine().memory_bytes),
        {**engine_args(), "enforce_eager": True},
        os.environ,
        "python -m experiments.gpu",
    )
    measured = measure_profile(subject, clock, clock.monotonic_s() + seconds - _END_S, print)
    save_profile(measured, folder / "profile.json")
    found: Figures = {"file": "profile.json"}
    for point in measured.recompute.points:
        what = f"{point.num_tokens} tokens behind {point.num_context_tokens}"
        found[f"recompute {what}, ms"] = 1e3 * point.seconds
    for name, section in (("out", measured.swap_out), ("in", measured.swap_in)):
        for copied in section.points:
            found[f"swap {name} {copied.num_blocks} blocks, ms"] = 1e3 * copied.seconds
    return found


CHECKS: Mapping[str, Callable[[float, Path], Figures]] = {
    "pool": _pool,
    "copies": _copies,
    "streams": _streams,
    "tests": _tests,
    "steps-v1": _steps,
    "steps-v2": _steps,
    "profile": _profile,
}
# Before vLLM is imported. V2 is asked for, or V1, whatever vLLM's default.
ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "steps-v1": {_RUNNER_VARIABLE: "0"},
    "steps-v2": {_RUNNER_VARIABLE: "1"},
}


def main(name: str, output: Path, seconds: float, folder: Path) -> None:
    """Writes the result, also that of a check that raises."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"})
    os.environ.update(ENVIRONMENT.get(name, {}))
    try:
        result = Result(name, "passed", CHECKS[name](seconds, folder))
    except Exception as error:  # the report says so, and the next check has its turn
        result = Result(name, "failed", {}, f"{type(error).__name__}: {error}")
    output.write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
