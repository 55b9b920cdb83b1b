"""The report on a machine: one table of the checks, and a table of figures for each. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from experiments.gpu.plan import CHECKS, Machine, Result

_SHOWS = {check.name: check.shows for check in CHECKS}


def as_json(machine: Machine, results: Sequence[Result]) -> str:
    """Returns it for programs."""
    found = {"machine": asdict(machine), "results": [asdict(each) for each in results]}
    return json.dumps(found, indent=2) + "\n"


def as_markdown(machine: Machine, results: Sequence[Result]) -> str:
    """Returns it for people."""
    parts = ["# GPU checks", _machine_line(machine), _overview(results)]
    parts += [_figures(each) for each in results if each.figures]
    return "\n\n".join(parts) + "\n"


def _machine_line(machine: Machine) -> str:
    device = machine.device or "no CUDA device"
    memory = f", {machine.memory_bytes / 2**30:.0f} GiB" if machine.memory_bytes else ""
    versions = [
        f"{name} {version}" if version else f"{name} is not installed"
        for name, version in (("torch", machine.torch), ("vLLM", machine.vllm))
    ]
    cuda = f", CUDA {machine.cuda}" if machine.cuda else ""
    return f"{device}{memory}; {machine.num_cores} cores; {', '.join(versions)}{cuda}."


def _overview(results: Sequence[Result]) -> str:
    rows = [
        f"| {each.name} | {_SHOWS[each.name]} | {_outcome(each)} | {_cell(each.why)} |"
        for each in results
    ]
    return "\n".join(["| check | shows | outcome | why |", "| --- | --- | --- | --- |", *rows])


def _outcome(result: Result) -> str:
    return "**FAILED**" if result.outcome == "failed" else result.outcome


def _figures(result: Result) -> str:
    rows = [f"| {name} | {_value(value)} |" for name, value in result.figures.items()]
    return "\n".join([f"## {result.name}", "", "| figure | value |", "| --- | --: |", *rows])


def _value(value: float | str) -> str:
    return _cell(value) if isinstance(value, str) else f"{value:.4g}"


def _cell(text: str) -> str:
    """One line, without what would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")
