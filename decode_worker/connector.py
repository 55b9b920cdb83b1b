"""vLLM's NIXL connector with two corrections: how many tokens it reads, and until when.

The stock connector assumes that prefill computed every token of the decode prompt,
and asks for as many blocks. Our decode prompt has one token more: the first token
of the answer, which prefill sampled but never computed. When the prompt fills its
last block exactly, that token opens a block that prefill does not have, and the
stock connector fails an assertion that ends the engine. So the scheduler's half
asks for the prefilled tokens only, and the decode engine computes the first
token's KV itself.

The stock connector also accepts a read that ended after its lease; the worker's
half reports such a read as failed. Finally, the stock side channel ends at the first
message that it does not expect; ours (stream2llm/engine/side_channel.py) does not.
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
    """Reads what prefill computed, without the first token, and rejects reads that ended late."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.connector_scheduler is not None:
            side_channel.install(self.connector_scheduler)
        worker = self.connector_worker
        self._leases = LeaseWatch(worker._lease_extension if worker is not None else 0)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Returns the number of tokens to read beyond `num_computed_tokens`, and whether async."""
        num_tokens, is_async = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if not num_tokens:
            return num_tokens, is_async
        assert request.kv_transfer_params is not None
        num_prefilled = request.kv_transfer_params["remote_num_tokens"]
        missing = min(num_tokens, num_prefilled - num_computed_tokens)
        return (missing, is_async) if missing > 0 else (0, False)

    # -- the worker's half -----------------------------------------------------------

    def start_load_kv(self, *args: Any, **kwargs: Any) -> None:
        """Starts the step's reads, and sends heartbeats for requests that wait to read."""
        metadata, now_s = self._connector_metadata, _now_s()
        for request in metadata.reqs_to_recv.values():
            deadline_s = self._deadline_s(request.remote)
            if deadline_s is not None and any(request.local_block_ids):
                self._leases.began(request.remote.request_id, deadline_s)
        # vLLM sends an engine no heartbeat while the handshake with it is under way.
        reached = [
            each.req_ids
            for engine_id, each in metadata.heartbeat_by_engine.items()
            if engine_id in self.connector_worker._remote_agents
        ]
        super().start_load_kv(*args, **kwargs)
        if reached:
            self._leases.sent_signs({name for names in reached for name in names}, now_s)

    def _deadline_s(self, remote: Any) -> float | None:
        """Returns the lease's end by the local clock; None while the remote clock is unknown."""
        measured_s = self.connector_worker._engine_clock_offset.get(remote.engine_id)
        if remote.blocks_expiry_time is None or measured_s is None:
            return None
        return float(remote.blocks_expiry_time - clock_offset_s(remote.host, measured_s))

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """Returns vLLM's results, with reads that ended after their lease marked as failed."""
        worker = self.connector_worker
        reading: Mapping[str, Any] = dict(worker._recving_metadata)
        results = super().get_transfer_results(finished_req_ids)
        for request_id in results.finished_recving:
            meta = reading[request_id]
            deadline_s = self._deadline_s(meta.remote)
            if deadline_s is not None:
                # A read that began with the handshake is not in the metadata of `start_load_kv`.
                self._leases.began_before(meta.remote.request_id, deadline_s)
            if not self._leases.ended(meta.remote.request_id, _now_s()):
                results.failed_recving.add(request_id)
                worker._invalid_block_ids.put(set(meta.local_block_ids[0]))
        return results


def _now_s() -> float:
    # vLLM sets its deadlines by this clock.
    return time.perf_counter()  # noqa: TID251
