"""Which of vLLM's two model runners engines use: the variable that chooses it."""

from __future__ import annotations

import os

RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


def runner_environment() -> dict[str, str]:
    """Returns the variable as this process has it, else the one for V1."""
    return {RUNNER_VARIABLE: os.environ.get(RUNNER_VARIABLE, "0")}
