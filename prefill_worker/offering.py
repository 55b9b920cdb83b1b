"""Carries out KV offers on vLLM: holds the blocks, registers the lease, emits parameters.

To the NIXL connector an offer is a finished request of its own, `<session>#<n>`,
whose blocks wait for a reader under a lease. vLLM's scheduler does not know it:
each block is held by a reference, and when the connector's worker reports the offer
as sent (read, refused, or its lease has ended) the references are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.request import Request, RequestStatus

from prefill_worker.digest_sampling import DigestSampling
from prefill_worker.nixl_connector import NixlConnector
from prefill_worker.offers import Offer, OfferTable
from prefill_worker.progress_reporting import LiveSession
from stream2llm.api.handover import HANDOVER_KEY


@dataclass(slots=True)
class _OfferedRequest:
    """The part of a finished request that the connector reads."""

    request_id: str
    num_computed_tokens: int
    status: RequestStatus = RequestStatus.FINISHED_LENGTH_CAPPED
    kv_transfer_params: dict[str, Any] = field(
        default_factory=lambda: {"do_remote_decode": True, "do_remote_prefill": False}
    )


class Offering:
    """Makes offers for touched sessions, and ends them."""

    def __init__(
        self,
        manager: KVCacheManager,
        nixl: NixlConnector | None,
        table: OfferTable,
        digests: DigestSampling,
        now_s: Callable[[], float],
    ) -> None:
        self._manager = manager
        self._nixl = nixl
        self.table = table
        self._digests = digests
        self._now_s = now_s
        self._touched: set[str] = set()

    @property
    def pinned(self) -> list[int]:
        """Every block that an offer holds, once per offer that holds it."""
        return [block_id for offer in self.table.offers() for block_id in offer.block_ids]

    def spliced(self, request_id: str, num_same_tokens: int, num_stable_tokens: int) -> None:
        """A context event: offered KV behind the common prefix is no longer the session's."""
        if self._nixl is not None:
            self.table.spliced(request_id, num_same_tokens, num_stable_tokens)

    def touch(self, request_id: str) -> None:
        """The session's figures may have changed."""
        if self.table.state(request_id) is not None:
            self._touched.add(request_id)

    def forget(self, request_id: str) -> None:
        """The session has ended; its offer may still be read."""
        self._touched.discard(request_id)
        self.table.forget(request_id)

    def end(self, offer_id: str) -> bool:
        """Frees an offer's blocks after its read; returns whether the id is an offer's."""
        offer = self.table.end(offer_id)
        if offer is None:
            return False
        pool = self._manager.block_pool
        # Tail first, as vLLM frees a request, so that the tail is evicted first.
        pool.free_blocks([pool.blocks[block_id] for block_id in reversed(offer.block_ids)])
        self.touch(offer.session_id)
        return True

    def take_due(
        self, live: Mapping[str, LiveSession], has_work: Callable[[str], bool], *, is_short: bool
    ) -> Iterator[tuple[int, EngineCoreOutput]]:
        """Returns after a step the offers that are due, each with its client index."""
        for request_id in tuple(self._touched):
            request = live[request_id].request
            due = self.table.due(
                request_id,
                self._num_ready_tokens(request),
                has_work=has_work(request_id),
                is_short=is_short,
            )
            if due.num_tokens:
                yield request.client_index, self._make(live[request_id], due.num_tokens)
            if not due.waits_for_memory:
                self._touched.discard(request_id)

    def _num_ready_tokens(self, request: Request) -> int:
        """Returns how many computed tokens have a digest, where there are digests."""
        num_computed: int = request.num_computed_tokens
        digests = self._digests.blocks
        if digests is None:
            return num_computed
        num_blocks = digests.num_sampled_blocks(request.request_id)
        return min(num_computed, num_blocks * self.table.limits.block_size)

    def _make(self, live: LiveSession, num_tokens: int) -> EngineCoreOutput:
        request_id = live.request.request_id
        num_blocks = num_tokens // self.table.limits.block_size
        blocks = self._manager.get_blocks(request_id).blocks[0][:num_blocks]
        assert len(blocks) == num_blocks, f"{request_id} has {len(blocks)} of {num_blocks} blocks"
        self._manager.block_pool.touch(blocks)
        ids = tuple(block.block_id for block in blocks)
        offer = self.table.make(request_id, ids, self._now_s())
        params = self._register(offer, num_tokens)
        self._digests.add_to(params, request_id)
        wire = {"revision": live.state.revision, "num_tokens": num_tokens, "params": params}
        return EngineCoreOutput(
            request_id=request_id, new_token_ids=[], kv_transfer_params={HANDOVER_KEY: wire}
        )

    def _register(self, offer: Offer, num_tokens: int) -> dict[str, Any]:
        """Makes the connector keep a lease; returns the parameters for decode."""
        assert self._nixl is not None, "nothing is offered without a connector"
        scheduler = self._nixl.connector_scheduler
        # The connector's worker ignores deadlines of requests that were in no step.
        scheduler._reqs_in_batch.add(offer.offer_id)
        request = _OfferedRequest(offer.offer_id, num_tokens)
        is_held, params = scheduler.request_finished(request, (list(offer.block_ids),))
        assert is_held, "the connector keeps blocks of a request that ended as it should"
        return with_deadline(params, scheduler)


def with_deadline(params: dict[str, Any], scheduler: Any) -> dict[str, Any]:
    """Adds the end of their lease to transfer parameters, in this process's perf_counter.

    `scheduler` is the half of the connector that keeps the lease.
    """
    deadline_s = scheduler._reqs_need_send.get(params["remote_request_id"])
    return {**params, "remote_blocks_expiry_time": deadline_s}
