"""The checks, what each needs, and what fits into the time that is left. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "not run"]
LIMIT_S = 480.0
# For starting the first process, and for the report.
_RESERVE_S = 10.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is; empty or 0: nothing."""

    device: str = ""
    memory_bytes: int = 0
    torch: str = ""
    cuda: str = ""
    vllm: str = ""
    pytest: str = ""
    num_cores: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One check, which has a process of its own for so long."""

    name: str
    shows: str
    limit_s: float
    needs_vllm: bool = False
    needs_pytest: bool = False


CHECKS = (
    Check("pool", "host memory is allocated and pinned, by size", 45),
    Check("copies", "blocks come back exactly while the step overwrites them; bytes a second", 45),
    Check("streams", "how much of the copies a step hides", 30),
    Check(
        "tests", "`pytest -m gpu`: copies in every layout of vLLM's", 75, needs_vllm=True,
        needs_pytest=True,
    ),
    Check("steps-v1", "the time between steps, model runner V1", 100, needs_vllm=True),
    Check("steps-v2", "the time between steps, model runner V2", 100, needs_vllm=True),
    Check("profile", "a cost profile: recomputing and swapping", 150, needs_vllm=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """What one check found."""

    name: str
    outcome: Outcome
    # Figures by name, units in the names.
    figures: dict[str, float | str]
    # Why it failed, or was not run.
    why: str = ""


def why_not(check: Check, machine: Machine, left_s: float) -> str:
    """Returns why a check is not run here, with so many seconds left; "" if it is."""
    if not machine.torch:
        return "torch is not installed"
    if not machine.device:
        return "no CUDA device"
    if check.needs_vllm and not machine.vllm:
        return "vLLM is not installed"
    if check.needs_pytest and not machine.pytest:
        return "pytest is not installed"
    if left_s - _RESERVE_S < check.limit_s:
        return f"{left_s:.0f} s are left, it may take {check.limit_s:g} s"
    return ""


def chosen(names: Iterable[str]) -> tuple[Check, ...]:
    """Returns the checks of these names in their order, all of them for none; ValueError: unknown."""
    wanted = set(names)
    if unknown := wanted - {check.name for check in CHECKS}:
        known = ", ".join(check.name for check in CHECKS)
        raise ValueError(f"no check {', '.join(sorted(unknown))}; there are {known}")
    return tuple(check for check in CHECKS if not wanted or check.name in wanted)
