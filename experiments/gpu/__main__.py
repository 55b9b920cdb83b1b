"""Runs the checks one after the other, each in a process of its own, and prints the report.

Needs torch, and vLLM for some of them; no network, and nothing that is not installed: what
cannot run is reported as not run. Exit codes: 0 all that ran passed; 1 a check failed; 2 bad
usage; 3 none could run, as without a CUDA device.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from experiments.gpu.machine import this_machine
from experiments.gpu.plan import LIMIT_S, Check, Machine, Result, chosen, why_not
from experiments.gpu.report import as_json, as_markdown
from stream2llm.serving.system.clock import Clock, SystemClock

NONE_RAN = 3
_TAIL_CHARS = 2000

Run = Callable[[Check, Path], Result]


def run_all(
    checks: Sequence[Check], machine: Machine, output: Path, run: Run, clock: Clock, limit_s: float
) -> list[Result]:
    """Runs those that can run in the time; says of the others why not."""
    ends_s = clock.monotonic_s() + limit_s
    results = []
    for check in checks:
        why = why_not(check, machine, ends_s - clock.monotonic_s())
        result = Result(check.name, "not run", {}, why) if why else run(check, output)
        print(f"{check.name}: {result.outcome} {result.why}".rstrip(), file=sys.stderr, flush=True)
        results.append(result)
    return results


def run_in_process(check: Check, output: Path) -> Result:
    """Runs one check, and ends all of its processes when its time is over."""
    found, log = output / f"{check.name}.json", output / f"{check.name}.log"
    found.unlink(missing_ok=True)
    command = (
        "-m",
        "experiments.gpu.checks",
        check.name,
        str(found),
        f"{check.limit_s}",
        str(output),
    )
    with log.open("w") as lines:
        process = subprocess.Popen(
            (sys.executable, *command), stdout=lines, stderr=lines, start_new_session=True
        )
        try:
            process.wait(check.limit_s)
        except subprocess.TimeoutExpired:
            return Result(check.name, "failed", {}, f"took more than {check.limit_s:g} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not found.is_file():
        tail = log.read_text(errors="replace")[-_TAIL_CHARS:]
        return Result(check.name, "failed", {}, f"ended with {process.returncode}: {tail}")
    return Result(**json.loads(found.read_text()))


def exit_code(results: Sequence[Result]) -> int:
    """Returns the exit code of the command."""
    outcomes = {each.outcome for each in results}
    if "failed" in outcomes:
        return 1
    return 0 if "passed" in outcomes else NONE_RAN


def main(arguments: Sequence[str], machine: Machine | None = None) -> int:
    """Prints the report, and writes it beside what the checks leave; returns the exit code."""
    parser = ArgumentParser(
        prog="python -m experiments.gpu",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="CHECK", help="these checks")
    parser.add_argument("--seconds", type=float, default=LIMIT_S, help="time for all of them")
    parser.add_argument("--output", type=Path, default=Path("gpu-report"), help="a folder")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    args = parser.parse_args(arguments)
    try:
        checks = chosen(args.only)
    except ValueError as error:
        parser.error(str(error))
    args.output.mkdir(parents=True, exist_ok=True)
    machine = machine or this_machine()
    results = run_all(checks, machine, args.output, run_in_process, SystemClock(), args.seconds)
    (args.output / "report.json").write_text(as_json(machine, results))
    (args.output / "report.md").write_text(as_markdown(machine, results))
    print(as_json(machine, results) if args.json else as_markdown(machine, results), end="")
    return exit_code(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
