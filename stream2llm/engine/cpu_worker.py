"""vLLM's CPU worker with three corrections.

**Seeds**, with model runner V1 alone: V2 has no generators. A step that does not finish a
prompt samples all the same; vLLM discards the token and resets the request's generator. CPU
generators cannot be reset (`set_offset` raises, and ends the engine), so here a request whose
token will be discarded samples without its generator, and gets it back afterwards.

**NIXL's progress thread.** Its Python API makes it poll without a pause, which keeps one
core busy in every idle engine: with two engines on two cores, both. Here it sleeps until
an event arrives, or for `_POLL_S` at most.

**The computing thread's core.** vLLM's NIXL connector moves the thread that creates it to
the last core of the NUMA node, to keep reads off the cores that compute. That thread is
the computing one, so all engines of a machine would share that core. Here it returns to
its own; NIXL's threads stay where vLLM puts them.

Runs inside the engine's worker process, on CPU machines only: a GPU machine can spare a
core for transfers, and GPU generators can be reset.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.cpu_worker import CPUWorker

# The thread wakes on events; this only limits its sleep without one.
_POLL_S = 0.01


class QuietCPUWorker(CPUWorker):
    """CPUWorker that keeps its generators' state and its core, and NIXL from spinning."""

    def init_device(self) -> None:
        """Builds the model runner; wraps the sampling of V1."""
        let_progress_thread_sleep(round(_POLL_S * 1e6))
        super().init_device()
        if not self.use_v2_model_runner:
            self._keep_generators()

    def _keep_generators(self) -> None:
        runner = self.model_runner
        sample_tokens = runner.sample_tokens

        def sample_with_kept_generators(*args: Any, **kwargs: Any) -> Any:
            generators = runner.input_batch.generators
            kept = take_discarded(generators, _discarded_rows(runner))
            try:
                return sample_tokens(*args, **kwargs)
            finally:
                generators.update(kept)

        runner.sample_tokens = sample_with_kept_generators

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Creates KV cache and connectors, and keeps this thread on its cores."""
        cores = os.sched_getaffinity(0)
        super().initialize_from_config(kv_cache_config)
        os.sched_setaffinity(0, cores)


def let_progress_thread_sleep(poll_us: int) -> None:
    """Makes NIXL agents created in this process from now on poll at this interval."""
    from nixl._api import nixl_agent

    bindings = sys.modules[nixl_agent.__module__].nixlBind

    class QuietAgentConfig(bindings.nixlAgentConfig):  # type: ignore[name-defined]
        """Overrides this delay, which NIXL's Python API sets to 0."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, poll_us if name == "pthrDelay" else value)

    bindings.nixlAgentConfig = QuietAgentConfig


def take_discarded(
    generators: dict[int, torch.Generator], rows: list[int]
) -> dict[int, torch.Generator]:
    """Removes the generators of those batch rows; returns them by row."""
    return {row: generators.pop(row) for row in rows if row in generators}


def _discarded_rows(runner: Any) -> list[int]:
    num_requests = runner.input_batch.num_reqs
    rows: list[int] = np.flatnonzero(runner.discard_request_mask.np[:num_requests]).tolist()
    return rows
