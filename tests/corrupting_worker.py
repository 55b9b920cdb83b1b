"""A CPU worker for decode engines in tests, which overwrites KV after it was read.

It runs in the engine's process; tests/two_engines.py writes its orders.
`STREAM2LLM_TEST_CORRUPT` names a file. While it has content, "<block> <layer> <rank>", each
read on that rank (-1: any) ends with that block, modulo those read, overwritten in that
layer, before it is read. A block that was on its way to another place looks so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.v1.kv_cache_interface import KVCacheConfig

from stream2llm.engine.cpu_worker import QuietCPUWorker

_VARIABLE = "STREAM2LLM_TEST_CORRUPT"


class CorruptingCPUWorker(QuietCPUWorker):
    """QuietCPUWorker whose reads bring other KV when a test says so."""

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Wraps the end of reads at NIXL's worker half."""
        super().initialize_from_config(kv_cache_config)
        reader = get_kv_transfer_group().connector_worker
        get_results = reader.get_transfer_results

        def results_with_other_kv() -> Any:
            reading = dict(reader._recving_metadata)
            results = get_results()
            for request_id in results.finished_recving - results.failed_recving:
                self._corrupt(reading[request_id].local_block_ids[0])
            return results

        reader.get_transfer_results = results_with_other_kv

    def _corrupt(self, block_ids: list[int]) -> None:
        order = Path(os.environ[_VARIABLE]).read_text().split()
        if not order:
            return
        block, layer, rank = map(int, order)
        if rank in (-1, self.rank):
            cache: torch.Tensor = self.model_runner.kv_caches[layer]
            block_id = block_ids[block % len(block_ids)]
            # Another block's KV, of the same kind: that of its neighbour in memory, or none.
            cache[block_id] = cache[block_id - 1] + 1
