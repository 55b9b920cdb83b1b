"""Ends hand-overs and offers on vLLM's NIXL connector, and completes their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from prefill_worker.digest_sampling import DigestSampling
from prefill_worker.nixl_connector import NixlConnector
from prefill_worker.offering import Offering, with_deadline


@dataclass(frozen=True, slots=True)
class HandingOver:
    """The hand-overs of an engine; without a connector there are none."""

    nixl: NixlConnector | None
    offering: Offering
    digests: DigestSampling

    def end_offers(self, output: KVConnectorOutput) -> bool:
        """Frees offers that are no longer read; returns whether there were any.

        They are taken out of `output`: the base class looks up requests by its names.
        """
        sent = output.finished_sending
        ended = {name for name in sent or () if self.offering.end(name)}
        if ended:
            output.finished_sending = sent - ended
        return bool(ended)

    def end_lease(self, request: Request | None) -> None:
        """Frees a hand-over that will not be read any more.

        The router closes its half when decode has read; an RPC that breaks after the
        first token does not reach the engine. The connector accepts a deadline that has
        passed, and reports the blocks as sent with its next step.
        """
        if self.nixl is not None and request is not None and request.is_finished():
            self.nixl.connector_scheduler._reqs_need_send[request.request_id] = 0.0

    def complete(self, params: dict[str, Any], request_id: str) -> dict[str, Any]:
        """Adds the end of the lease, and the digests of the blocks, to a hand-over's parameters."""
        if self.nixl is None:
            return params
        completed = with_deadline(params, self.nixl.connector_scheduler)
        self.digests.add_to(completed, request_id)
        return completed
