"""Runs a CPU engine's model in EngineCore's own process, as vLLM does on one GPU.

On CPUs vLLM runs the model in a separate process, and both sides poll for each other's
messages. Where an engine has one core they compete for it: a step of eight tokens of a
small model takes a quarter longer, and an idle engine keeps its core busy for a second
after each step (docs/benchmarks.md has the figures). vLLM's reason is that only a new
process takes OpenMP settings from its environment; here calls bind and count the
threads, before the first parallel region.

Only for engines of one rank; more need processes anyway.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor

# Threads that carry messages take priority over the computing one; otherwise a finished
# token on a shared core waits for the next step to end. 0 to 19, as in nice(1).
_COMPUTE_NICENESS = 5
_RANKS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


class InProcessCPUExecutor(UniProcExecutor):
    """vLLM's executor for one process, with the cores of `VLLM_CPU_OMP_THREADS_BIND`."""

    def _init_executor(self) -> None:
        binding = OMPProcessManager(self.vllm_config)
        if binding.cpu_lists:
            bind_this_thread(binding.cpu_lists[0])
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _COMPUTE_NICENESS)
        super()._init_executor()


def bind_this_thread(cores: list[int]) -> None:
    """Binds this thread, and those it starts, to these cores; torch uses as many threads."""
    os.sched_setaffinity(threading.get_native_id(), cores)
    torch.set_num_threads(len(cores))


def executor_args(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns vLLM arguments that choose this executor; they override the user's.

    Empty on GPUs, for engines of several ranks, and where the user has chosen one
    (`distributed_executor_backend: mp` runs the model in a separate process).
    """
    has_chosen = engine_args.get("distributed_executor_backend") is not None
    num_ranks = max(int(engine_args.get(name) or 1) for name in _RANKS)
    if has_chosen or num_ranks > 1 or not current_platform.is_cpu():
        return {}
    return {"distributed_executor_backend": InProcessCPUExecutor}
