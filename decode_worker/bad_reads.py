"""Turns reads that brought other KV than prefill computed into failed ones.

`digest_check` judges a read; here its verdict becomes vLLM's `failed_recving`, before
anything uses the blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus

from decode_worker.digest_check import BadKv, ReadCheck
from stream2llm.engine.kv_sampling import find_samples

_log = logging.getLogger(__name__)


class BadReads:
    """The bad reads of one step, by request."""

    def __init__(self, num_ranks: int) -> None:
        self._check = ReadCheck(num_ranks)
        self._found: dict[str, BadKv] = {}

    def check(self, output: KVConnectorOutput, requests: Mapping[str, Request]) -> None:
        """Judges the reads that have ended, and adds bad ones to those that failed."""
        samples = find_samples(output.kv_connector_worker_meta)
        if samples is not None:
            self._check.take(samples.taken())
        for request_id in output.finished_recving or ():
            request = requests[request_id]
            is_waiting = request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
            has_failed = request_id in output.failed_recving
            if not is_waiting or has_failed:
                self._check.forget(request_id)
            elif self._is_bad(request):
                output.failed_recving.add(request_id)

    def _is_bad(self, request: Request) -> bool:
        transfer = request.kv_transfer_params
        bad = self._check.judge(request.request_id, transfer)
        if bad is None:
            return False
        _log.error(
            "kv_digest_mismatch request_id=%s engine_id=%s blocks=%d what=%s",
            request.request_id,
            transfer["remote_engine_id"],
            bad.num_blocks,
            bad.what,
        )
        self._found[request.request_id] = bad
        return True

    def pop(self, request_id: str) -> BadKv | None:
        """Returns what was wrong with a request's read, once; None for a right one."""
        return self._found.pop(request_id, None)

    def clear(self) -> None:
        """The step has ended."""
        self._found.clear()
