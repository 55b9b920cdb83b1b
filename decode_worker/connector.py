"""vLLM's NIXL connector, told where the prefilled tokens end, and when a lease did.

The stock connector takes it that prefill computed every token of the decode
prompt, and asks for as many blocks. Our decode prompt has one token more: the
first token of the answer, which prefill sampled but never computed. When the
prompt fills its last block exactly, that token opens a block that prefill does
not have, and the stock connector fails an assertion that ends the engine. So
the scheduler's half asks for the prefilled tokens only, and the decode engine
computes the first token's KV itself.

The stock connector also takes a read for good that ended after its lease. The
worker's half reports it as failed. And its side channel ends at the first message
that it does not expect; ours (stream2llm/engine/side_channel.py) does not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlConnector
from vllm.v1.request import Request

from decode_worker.lease_watch import LeaseWatch, clock_offset_s
from stream2llm.engine import side_channel


class FirstTokenNixlConnector(NixlConnector):
    """Pulls what prefill computed, never the first token, and keeps what it got in time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.connector_scheduler is not None:
            side_channel.install(self.connector_scheduler)
        worker = self.connector_worker
        self._leases = LeaseWatch(worker._lease_extension if worker is not None else 0)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Tokens to fetch beyond the `num_computed_tokens` that are here, and whether async."""
        num_tokens, is_async = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if not num_tokens:
            return num_tokens, is_async
        assert request.kv_transfer_params is not None
        num_prefilled = request.kv_transfer_params["remote_num_tokens"]
        missing = min(num_tokens, num_prefilled - num_computed_tokens)
        return (missing, is_async) if missing > 0 else (0, False)

    # -- the worker's half -----------------------------------------------------------

    def start_load_kv(self, *args: Any, **kwargs: Any) -> None:
        """Reads begin; signs of life go out for those that wait."""
        metadata, now_s = self._connector_metadata, _now_s()
        for request in metadata.reqs_to_recv.values():
            deadline_s = self._deadline_s(request.remote)
            if deadline_s is not None and any(request.local_block_ids):
                self._leases.began(request.remote.request_id, deadline_s)
        # While the handshake with an engine is under way, vLLM sends it none.
        reached = [
            each.req_ids
            for engine_id, each in metadata.heartbeat_by_engine.items()
            if engine_id in self.connector_worker._remote_agents
        ]
        super().start_load_kv(*args, **kwargs)
        if reached:
            self._leases.sent_signs({name for names in reached for name in names}, now_s)

    def _deadline_s(self, remote: Any) -> float | None:
        """When the lease ends by our clock; None while the other one is not known."""
        measured_s = self.connector_worker._engine_clock_offset.get(remote.engine_id)
        if remote.blocks_expiry_time is None or measured_s is None:
            return None
        return float(remote.blocks_expiry_time - clock_offset_s(remote.host, measured_s))

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """What has been read; a read that ended after its lease has failed."""
        worker = self.connector_worker
        reading: Mapping[str, Any] = dict(worker._recving_metadata)
        results = super().get_transfer_results(finished_req_ids)
        for request_id in results.finished_recving:
            meta = reading[request_id]
            deadline_s = self._deadline_s(meta.remote)
            if deadline_s is not None:
                # One that began with the handshake was not known to begin.
                self._leases.began_before(meta.remote.request_id, deadline_s)
            if not self._leases.ended(meta.remote.request_id, _now_s()):
                results.failed_recving.add(request_id)
                worker._invalid_block_ids.put(set(meta.local_block_ids[0]))
        return results


def _now_s() -> float:
    # The clock that vLLM sets its deadlines by; no other will do.
    return time.perf_counter()  # noqa: TID251
