"""vLLM's CPU worker, able to prefill a seeded request in several steps.

A step that does not finish a prompt samples all the same; vLLM discards the
token and turns the request's generator back. CPU generators cannot be turned
back (`set_offset` raises, and ends the engine), so here a request whose token
will be discarded samples without its generator, and gets it back afterwards.

Runs inside the engine's worker process, on CPU machines only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.worker.cpu_worker import CPUWorker


class SeedSafeCPUWorker(CPUWorker):
    """CPUWorker whose model runner keeps generators away from discarded tokens."""

    def init_device(self) -> None:
        """Builds the model runner, then puts ours around its sampling."""
        super().init_device()
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


def take_discarded(
    generators: dict[int, torch.Generator], rows: list[int]
) -> dict[int, torch.Generator]:
    """Removes the generators of those batch rows; returns them by row."""
    return {row: generators.pop(row) for row in rows if row in generators}


def _discarded_rows(runner: Any) -> list[int]:
    num_requests = runner.input_batch.num_reqs
    rows: list[int] = np.flatnonzero(runner.discard_request_mask.np[:num_requests]).tolist()
    return rows
